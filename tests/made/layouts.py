"""The same data set in every layout, made of links to the files of one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from tests.made.datasets import save_nifti
from volseg.io.cases import Case
from volseg.io.datasets import Dataset
from volseg.io.labels import make_label_map

AFFINE = np.array([[-1.0, 0, 0, 20], [0, 1.5, 0, -8], [0, 0, 3, 4], [0, 0, 0, 1]])


CHANNELS = ("T2w", "FLAIR")
LABELS = {"background": 0, "core": 5, "edge": 7}


def made_dataset(root: Path) -> Dataset:
    """Write three cases of two channels, whose names are not in alphabetical order, and values with gaps."""
    cases = []
    for number, name in enumerate(("a_1", "b_1000", "c")):
        rng = np.random.default_rng(number)
        shape = (6, 5, 4 + number)
        images = [rng.integers(0, 900, shape).astype(np.int16) for _ in CHANNELS]
        label = rng.choice(np.array([0, 5, 7], np.uint8), shape)
        files = [save_nifti(root / f"{name}.{at}.nii.gz", image, AFFINE) for at, image in enumerate(images)]
        cases.append(Case(name, tuple(files), save_nifti(root / f"{name}.nii.gz", label, AFFINE)))
    return Dataset("Made", root, tuple(cases), CHANNELS, make_label_map(LABELS))


def link(source: Path, target: Path) -> str:
    """Link to a file, and return the path of the link as text."""
    target.parent.mkdir(parents=True, exist_ok=True)
    target.symlink_to(source.resolve())
    return str(target)


def described(root: Path, made_from: Dataset, **content: object) -> Path:
    """Write a ``dataset.json`` with name and labels."""
    root.mkdir(parents=True, exist_ok=True)
    content = {"name": made_from.name, "labels": made_from.labels, **content}
    (root / "dataset.json").write_text(json.dumps(content), encoding="utf-8")
    return root


def channel_names(dataset: Dataset) -> dict[str, str]:
    """Return number -> name of the channels."""
    return {str(number): name for number, name in enumerate(dataset.channels)}


def decathlon(dataset: Dataset, root: Path) -> Path:
    training = []
    for case in dataset.cases:
        images = [link(path, root / f"imagesTr/{case.id}/{number}.nii.gz") for number, path in enumerate(case.images)]
        label = link(case.label, root / f"labelsTr/of_{case.id}.nii.gz")
        training.append({"image": images if len(images) > 1 else images[0], "label": label, "comment": "kept"})
    return described(root, dataset, training=training, modality=channel_names(dataset))


def nnunet(dataset: Dataset, root: Path) -> Path:
    numbered(dataset, root, "imagesTr", "labelsTr")
    return described(root, dataset, channel_names=channel_names(dataset), file_ending=".nii.gz")


def nnunet_listed(dataset: Dataset, root: Path) -> Path:
    listed = {
        case.id: {"images": [str(path.resolve()) for path in case.images], "label": str(case.label.resolve())}
        for case in dataset.cases
    }
    return described(root, dataset, channel_names=channel_names(dataset), file_ending=".nii.gz", dataset=listed)


def plain(dataset: Dataset, root: Path) -> Path:
    """Make plain folders beside the description of a Decathlon folder, whose files do not exist."""
    numbered(dataset, root, "images", "labels")
    training = [{"image": "imagesTr/a.nii.gz", "label": "labelsTr/a.nii.gz"}]
    return described(root, dataset, training=training, modality=channel_names(dataset))


def numbered(dataset: Dataset, root: Path, images: str, labels: str) -> None:
    for case in dataset.cases:
        for number, path in enumerate(case.images):
            link(path, root / images / f"{case.id}_{number:04d}.nii.gz")
        link(case.label, root / labels / f"{case.id}.nii.gz")


def case_folders(dataset: Dataset, root: Path) -> Path:
    for case in dataset.cases:
        for name, path in zip(dataset.channels, case.images, strict=True):
            link(path, root / case.id / f"{case.id}_{name.lower()}.nii.gz")
        link(case.label, root / case.id / f"{case.id}_seg.nii.gz")
    return described(root, dataset, channel_names=channel_names(dataset))


def bids(dataset: Dataset, root: Path) -> Path:
    for case in dataset.cases:
        for name, path in zip(dataset.channels, case.images, strict=True):
            link(path, root / f"{subject(case.id)}/anat/{subject(case.id)}_{name}.nii.gz")
        link(case.label, root / f"derivatives/manual/{subject(case.id)}/anat/{subject(case.id)}_dseg.nii.gz")
    rows = [f"{value}\t{name}" for name, value in dataset.labels.items()]
    (root / "derivatives/manual/dseg.tsv").write_text("\n".join(["index\tname", *rows]), encoding="utf-8")
    (root / "dataset.json").write_text(json.dumps({"name": dataset.name, "modality": channel_names(dataset)}))
    return root


def subject(case: str) -> str:
    """Return a name that BIDS allows: letters and digits only."""
    return f"sub-{''.join(filter(str.isalnum, case))}"


def table(dataset: Dataset, root: Path) -> Path:
    lines = [";".join(["Patient", *dataset.channels, "Label"])]
    for case in dataset.cases:
        named = zip(dataset.channels, case.images, strict=True)
        images = [link(path, root / case.id / f"{name}.nii.gz") for name, path in named]
        lines.append(";".join([case.id, *images, link(case.label, root / case.id / "label.nii.gz")]))
    described(root, dataset)
    (root / "cases.csv").write_text("\n".join(lines), encoding="utf-8")
    return root / "cases.csv"


LAYOUTS: dict[str, Callable[[Dataset, Path], Path]] = {
    make.__name__: make for make in (decathlon, nnunet, nnunet_listed, plain, case_folders, bids, table)
}
"""Name -> function that arranges a data set in a folder and returns what to read."""
