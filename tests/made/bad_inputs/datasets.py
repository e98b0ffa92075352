"""Bad data sets, through the reader of all layouts and ``volseg plan``; bad split files."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import volseg
from tests.made.bad_inputs.cases import BadInput
from tests.made.datasets import save_nifti, write_dataset
from volseg.config.schema import DataConfig
from volseg.data.split_rules import choose_split
from volseg.io.datasets import read_dataset

ROOT = Path("data")
SHAPE = (8, 9, 10)


def labels() -> np.ndarray:
    """Return a label of two boxes."""
    label = np.zeros(SHAPE, np.uint8)
    label[2:5, 3:6, 2:8], label[5:7, 3:6, 2:8] = 1, 2
    return label


def made(count: int = 3) -> Path:
    """Write a Decathlon data set of cases c0, c1, ..."""
    images = [np.random.default_rng(number).normal(100, 20, SHAPE).astype(np.float32) for number in range(count)]
    return write_dataset(ROOT, images, [labels()] * count, affine=np.diag([2.0, 2.0, 2.0, 1.0]), modality="MRI")


def planned(damage: Callable[[], object], *overrides: str) -> Callable[[], object]:
    """Return an attempt to plan a data set that is damaged first."""

    def attempt() -> object:
        made()
        damage()
        return volseg.plan(ROOT, list(overrides), workers=0)

    return attempt


def described(**changes: Any) -> Callable[[], object]:
    """Return an attempt to plan a data set with entries of ``dataset.json`` replaced."""

    def damage() -> None:
        content = json.loads((ROOT / "dataset.json").read_text())
        (ROOT / "dataset.json").write_text(json.dumps(content | changes))

    return planned(damage)


def description_is(text: str) -> Callable[[], object]:
    """Return an attempt to plan a data set with another ``dataset.json``."""
    return planned(lambda: (ROOT / "dataset.json").write_text(text))


def label_is(values: np.ndarray, spacing_mm: float = 2.0) -> Callable[[], object]:
    """Return an attempt to plan a data set with one label replaced."""
    affine = np.diag([spacing_mm, spacing_mm, spacing_mm, 1.0])
    return planned(lambda: save_nifti(ROOT / "labelsTr/c1.nii.gz", values, affine))


def files(*names: str, **description: Any) -> None:
    """Write empty files into a data set, and its ``dataset.json`` if there is a description."""
    for name in names:
        (ROOT / name).parent.mkdir(parents=True, exist_ok=True)
        (ROOT / name).touch()
    if description:
        (ROOT / "dataset.json").write_text(json.dumps(description))


def layout(*names: str, **description: Any) -> Callable[[], object]:
    """Return an attempt to read a data set of these files."""

    def attempt() -> object:
        files(*names, **description)
        return read_dataset(ROOT)

    return attempt


def table(text: str) -> Callable[[], object]:
    """Return an attempt to read a CSV of cases."""

    def attempt() -> object:
        files("a.nii.gz", "a_label.nii.gz", "c.nii.gz", "c_label.nii.gz")
        (ROOT / "cases.csv").write_text(text)
        return read_dataset(ROOT / "cases.csv")

    return attempt


CLASSES = {"background": 0, "liver": 1}
NNUNET = {"channel_names": {"0": "CT"}, "labels": CLASSES, "file_ending": ".nii.gz"}
DATASETS = (
    BadInput("A data set with a typing error", "data", planned(lambda: ROOT.rename("Data"))),
    BadInput("A folder of something else", "data", layout("notes/list.txt")),
    BadInput("A folder with a CSV", "cases.csv", layout("cases.csv", "scans/a.nii.gz")),
    BadInput("Folders that are called otherwise", "masks/", layout("images/a.nii.gz", "masks/a.nii.gz")),
    BadInput("A `dataset.json` that is not JSON", "dataset.json", description_is('{"name": "liver" "labels": {}}')),
    BadInput("A `dataset.json` without labels", "dataset.json", described(labels=None)),
    BadInput("A negative label value", "dataset.json", described(labels={"background": 0, "liver": -1})),
    BadInput("Two classes of the same value", "dataset.json",
             described(labels={"background": 0, "liver": 1, "spleen": 1})),
    BadInput("Regions that overlap without lying within each other", "dataset.json",
             described(labels={"background": 0, "one": [1, 2], "other": [2, 3]})),
    BadInput("An order of regions that does not name them all", "dataset.json",
             described(labels={"background": 0, "organ": [1, 2], "tumour": 2}, regions_class_order=[1])),
    BadInput("No class but the background", "dataset.json", described(labels={"0": "background"})),
    BadInput("A list of files that are not there", "c7.nii.gz",
             described(training=[{"image": "imagesTr/c7.nii.gz", "label": "labelsTr/c7.nii.gz"}])),
    BadInput("Listed cases without a label", "entry 2",
             described(training=[{"image": "imagesTr/c0.nii.gz", "label": "labelsTr/c0.nii.gz"},
                                 {"image": "imagesTr/c1.nii.gz"}, "imagesTr/c2.nii.gz"])),
    BadInput("Classes without values", "dataset.json", described(labels=["background", "liver"])),
    BadInput("A key of `dataset.json` with a typing error", "labels",
             layout("imagesTr/a_0000.nii.gz", "labelsTr/a.nii.gz", channel_names={"0": "CT"}, label=CLASSES)),
    BadInput("An empty list of cases", "data", described(training=[])),
    BadInput("An image without a label", "data",
             layout("imagesTr/a_0000.nii.gz", "imagesTr/b_0000.nii.gz", "labelsTr/a.nii.gz", "labelsTr/c.nii.gz",
                    **NNUNET)),
    BadInput("Labels that are called otherwise than their images", "data",
             layout("images/a.nii.gz", "labels/a_seg.nii.gz", labels=CLASSES, modality="CT")),
    BadInput("A case that lacks a channel", "data",
             layout("imagesTr/a_0000.nii.gz", "imagesTr/a_0001.nii.gz", "imagesTr/b_0000.nii.gz", "labelsTr/a.nii.gz",
                    "labelsTr/b.nii.gz", **NNUNET | {"channel_names": {"0": "T1", "1": "T2"}})),
    BadInput("A `file_ending` that is not read", "dataset.json",
             layout("imagesTr/a_0000.png", "labelsTr/a.png", **NNUNET | {"file_ending": ".png"})),
    BadInput("Folders of cases with two labels each", "old_seg.nii.gz",
             layout(*(f"{case}/{file}.nii.gz" for case in "ab" for file in ("t1", "seg", "old_seg")))),
    BadInput("The same case in two formats", "data",
             layout("images/a.nii", "images/a.nii.gz", "labels/a.nii.gz", labels=CLASSES, modality="CT")),
    BadInput("BIDS with the labels of two people", "data",
             layout("sub-1/anat/sub-1_T1w.nii", *(f"derivatives/{name}/sub-1/anat/sub-1_dseg.nii" for name in "ab"))),
    BadInput("A table without a column of labels", "cases.csv", table("image,mask\na.nii.gz,a_label.nii.gz\n")),
    BadInput("A table that names a file that is not there", "cases.csv",
             table("image,label\na.nii.gz,a_label.nii.gz\nb.nii.gz,a_label.nii.gz\n")),
    BadInput("Masks in a column that would become a channel", "cases.csv",
             table("T1,prediction,label\na.nii.gz,a_label.nii.gz,a_label.nii.gz\n")),
    BadInput("A column of scans beside the column `image`", "cases.csv",
             table("T1,image,label\nc.nii.gz,a.nii.gz,a_label.nii.gz\n")),
    BadInput("A table with several faults", "cases.csv",
             table("id,image,label,fold\na,a.nii.gz,a_label.nii.gz,1\na,c.nii.gz,c_label.nii.gz,2\n"
                   "b,,a_label.nii.gz,first\nd,c.nii.gz,c_label.nii.gz\n")),
    BadInput("A case that is listed twice", "data",
             layout("a.nii.gz", "a_label.nii.gz", labels=CLASSES, modality="CT",
                    training=[{"image": "a.nii.gz", "label": "a_label.nii.gz"}] * 2)),
    BadInput("A case under `training` and `validation`", "data",
             layout("a.nii.gz", "a_label.nii.gz", labels=CLASSES, modality="CT",
                    training=[{"image": "a.nii.gz", "label": "a_label.nii.gz"}],
                    validation=[{"image": "a.nii.gz", "label": "a_label.nii.gz"}])),
    BadInput("A case in `dataset.json` with a fold that is not a number", "dataset.json",
             layout("a.nii.gz", "a_label.nii.gz", labels=CLASSES, modality="CT",
                    training=[{"image": "a.nii.gz", "label": "a_label.nii.gz", "fold": "a"}])),
    BadInput("One file for two channels", "a.nii.gz", table("T1,T2,label\na.nii.gz,a.nii.gz,a_label.nii.gz\n")),
    BadInput("A table with a fold that is not a number", "cases.csv",
             table("image,label,fold\na.nii.gz,a_label.nii.gz,first\n")),
    BadInput("A label on another grid than its image", "labelsTr/c1.nii.gz", label_is(labels(), spacing_mm=2.5)),
    BadInput("A label value without a name", "labelsTr/c1.nii.gz", label_is(7 * labels())),
    BadInput("Negative values in a label file", "labelsTr/c1.nii.gz", label_is(-labels().astype(np.int8))),
    BadInput("An image, or probabilities from 0 to 255, as label", "labelsTr/c1.nii.gz",
             label_is(np.random.default_rng(0).integers(0, 256, SHAPE).astype(np.uint8))),
    BadInput("A label as the image", "imagesTr/c1.nii.gz",
             planned(lambda: shutil.copy(ROOT / "labelsTr/c1.nii.gz", ROOT / "imagesTr/c1.nii.gz"))),
    BadInput("A label of another size than its image", "labelsTr/c1.nii.gz", label_is(labels()[:, :, :9])),
)  # fmt: skip


def plan_with(*overrides: str) -> Callable[[], object]:
    """Return an attempt to plan a good data set with fields set by hand."""
    return planned(lambda: None, *overrides)


def split_by(content: object, *, count: int = 6, **settings: Any) -> Callable[[], object]:
    """Return an attempt to split the cases of a data set, with this content of a split file."""

    def attempt() -> object:
        dataset = read_dataset(made(count))
        if content is not None:
            Path("splits.json").write_text(json.dumps(content))
            settings.setdefault("splits", "splits.json")
        return choose_split(dataset, DataConfig(**settings), 0)

    return attempt


def fold(train: Sequence[int], val: Sequence[int]) -> dict[str, list[str]]:
    """Return an entry of a split file."""
    return {"train": [f"c{number}" for number in train], "val": [f"c{number}" for number in val]}


SPLITS = (
    BadInput("A memory without a unit", "plan.memory", plan_with("plan.memory=8")),
    BadInput("A field of the plan that does not exist", "plan.token_strid", plan_with("plan.token_strid=4")),
    BadInput("A token stride that does not exist", "plan.token_stride", plan_with("plan.token_stride=5")),
    BadInput("A patch that does not fit the decoder", "plan.patch_size", plan_with("plan.patch_size=[8,33,33]")),
    BadInput("A field of the plan that comes from the data set", "plan.labels",
             plan_with("plan.labels={background: 0, liver: 1}")),
    BadInput("A split file that is not there", "splits.json", split_by(None, splits="splits.json")),
    BadInput("A split file of another kind", "splits.json", split_by(["c0", "c1"])),
    BadInput("A split file of another data set", "splits.json",
             split_by([{"train": ["liver_1", "liver_2"], "val": ["liver_3"]}])),
    BadInput("A case that is both trained on and held out", "splits.json", split_by([fold([0, 1, 2], [2, 3])])),
    BadInput("A fold that does not exist", "data.fold", split_by([fold([0, 1, 2], [3, 4])], fold=3)),
    BadInput("A pattern that finds no patient", "data.patient_pattern", split_by(None, patient_pattern="^p[0-9]+")),
    BadInput("A data set of one case", "split", split_by(None, count=1)),
    BadInput("The folds of nnU-Net for few cases", "split", split_by(None, count=4, splits="nnunet")),
    BadInput("More shots than training cases", "data.shots", split_by(None, shots=20)),
)  # fmt: skip
