"""Faults of many kinds, planted into a copy of a Decathlon data set, each into a case of its own."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Change = Callable[[Array], Array]


@dataclass
class Planter:
    """Faults of one case of a copied data set.

    Attributes:
        root: The data set, whose files may be changed.
        entry: Entry of the case in ``dataset.json``; changes are written.
        other: Entry of another case, which stays as it is.
        content: The ``dataset.json``; changes are written.
    """

    root: Path
    entry: dict[str, Any]
    other: dict[str, Any]
    content: dict[str, Any]

    def path(self, part: str, *, other: bool = False) -> Path:
        """Return the file of a part (``image`` or ``label``)."""
        return self.root / (self.other if other else self.entry)[part]

    def change(
        self, part: str, array: Callable[[Array], Array], affine: Callable[[Array], Array] | None = None
    ) -> Path:
        """Write a part with other voxels or another affine, and return its path."""
        path = self.path(part)
        image = nibabel.load(path)
        voxels = array(np.asarray(image.dataobj))
        nibabel.save(nibabel.Nifti1Image(voxels, affine(image.affine.copy()) if affine else image.affine), path)
        return path

    def change_both(self, array: Change, affine: Change | None = None) -> Path:
        """Write image and label with other voxels or another affine, and return the path of the image."""
        self.change("label", array, affine)
        return self.change("image", array, affine)

    def add_case(self, name: str, **changes: Any) -> Path:
        """Add a case with the files of this one under another name, and return its image."""
        entry = {**self.entry, **changes}
        for part in ("image", "label"):
            target = Path(self.entry[part]).with_name(f"{name}.nii.gz")
            (self.root / target).write_bytes(self.path(part).read_bytes())
            entry[part] = str(target)
        self.content["training"].append(entry)
        return self.root / entry["image"]


def unchanged(voxels: Array) -> Array:
    """Return the voxels as they are."""
    return voxels


def wider(voxels: Array) -> Array:
    """Return voxels with three times the field of view along the first axis."""
    return np.pad(voxels, [(0, 2 * voxels.shape[0]), (0, 0), (0, 0)])


def with_voxel(value: float) -> Change:
    """Return a function that gives the first voxel a value."""

    def change(voxels: Array) -> Array:
        voxels = voxels.astype(np.float32)
        voxels[0, 0, 0] = value
        return voxels

    return change


def sheared(affine: Array) -> Array:
    """Return the affine of a tilted gantry."""
    affine[1, 2] += 0.2 * abs(affine[2, 2])
    return affine


def shifted(affine: Array) -> Array:
    """Return an affine that is 0.005 mm aside."""
    affine[0, 3] += 0.005
    return affine


def coarser(affine: Array) -> Array:
    """Return an affine with voxels 2.5 times as large."""
    affine[:3, :3] *= 2.5
    return affine


def single_voxel(voxels: Array) -> Array:
    """Return a label of which one class keeps one voxel."""
    voxels = voxels.copy()
    voxels.flat[np.flatnonzero(voxels == 2)[1:]] = 1
    return voxels


def truncated(case: Planter) -> Path:
    """Cut the image."""
    path = case.path("image")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path


def dangling(case: Planter) -> Path:
    """Replace the label by a link to nothing."""
    path = case.path("label")
    path.unlink()
    path.symlink_to("/nowhere/label.nii.gz")
    return path


def missing(case: Planter) -> Path:
    """Remove the label."""
    path = case.path("label")
    path.unlink()
    return path


def reordered(case: Planter) -> Path:
    """Store the label in another order of its voxels."""
    path = case.path("label")
    image = nibabel.load(path)
    codes = "".join({"R": "L", "L": "R", "A": "P", "P": "A"}.get(c, c) for c in nibabel.aff2axcodes(image.affine))
    nibabel.save(image.as_reoriented(_to(image, codes)), path)
    return path


def turned(case: Planter) -> Path:
    """Store image and label in another order of their voxels."""
    for part in ("label", "image"):
        image = nibabel.load(case.path(part))
        codes = "".join(nibabel.aff2axcodes(image.affine))[::-1]
        nibabel.save(image.as_reoriented(_to(image, codes)), case.path(part))
    return case.path("image")


def _to(image: Any, codes: str) -> Array:
    orientation = nibabel.orientations
    return np.asarray(
        orientation.ornt_transform(orientation.io_orientation(image.affine), orientation.axcodes2ornt(codes))
    )


def copied(case: Planter) -> Path:
    """Replace image and label by those of the other case."""
    for part in ("image", "label"):
        case.path(part).write_bytes(case.path(part, other=True).read_bytes())
    return case.path("image")


def relabelled(case: Planter) -> Path:
    """Replace image and label by those of the other case, with another value at one voxel of the label."""
    path = copied(case)

    def other_value(voxels: Array) -> Array:
        voxels = voxels.copy()
        voxels.flat[0] = 1 - min(voxels.flat[0], 1)
        return voxels

    case.change("label", other_value)
    return path


def in_test(case: Planter) -> Path:
    """List a copy of the image as a scan of the test set."""
    path = case.root / "imagesTs" / "known.nii.gz"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(case.path("image").read_bytes())
    case.content["test"] = ["imagesTs/known.nii.gz"]
    return path


def passed_over(case: Planter) -> Path:
    """Add a file of another format, and one that Windows writes."""
    path = case.path("image").with_name("scan.dcm")
    path.write_bytes(b"DICM")
    path.with_name("desktop.ini").touch()
    return path


def similar_name(case: Planter) -> Path:
    """Add a case whose name differs from that of another in capitals only, with other values and another label."""
    path = case.add_case(Path(case.entry["image"]).name.removesuffix(".nii.gz").upper())
    image, label = nibabel.load(path), nibabel.load(case.path("label"))
    nibabel.save(nibabel.Nifti1Image(np.asarray(image.dataobj) + 1, image.affine), path)
    other = np.roll(np.asarray(label.dataobj), 1, axis=0)
    nibabel.save(nibabel.Nifti1Image(other, label.affine), case.path("label").with_name(path.name))
    return path


def patient_in_folds(case: Planter) -> Path:
    """Put two cases of a patient into two folds."""
    case.entry.update(patient="p1", fold=0)
    case.other.update(patient="p1", fold=1)
    return case.path("image")


def undeclared_class(case: Planter) -> Path:
    """Declare a class that no label holds."""
    case.content["labels"]["7"] = "absent"
    return case.root


def background_named(case: Planter) -> Path:
    """Name the background as a class."""
    case.content["labels"]["0"] = "head"
    return case.root


FAULTS: dict[str, Callable[[Planter], Path]] = {
    "unreadable": truncated,
    "dangling-link": dangling,
    "missing-file": missing,
    "dimensions": lambda case: case.change("image", lambda voxels: np.stack([voxels] * 2, axis=-1)),
    "grid": lambda case: case.change("label", lambda voxels: voxels[:, :, :-1]),
    "not-finite": lambda case: case.change("image", with_voxel(np.nan)),
    "constant": lambda case: case.change("image", np.zeros_like),
    "undeclared-value": lambda case: case.change("label", with_voxel(9)),
    "label-not-integer": lambda case: case.change("label", with_voxel(0.5)),
    "label-too-large": lambda case: case.change("label", lambda voxels: voxels.astype(np.int32) * 70_000),
    "conflicting-labels": relabelled,
    "train-and-test": in_test,
    "duplicate": copied,
    "patient-in-splits": patient_in_folds,
    "passed-over": passed_over,
    "similar-names": similar_name,
    "grid-tolerance": lambda case: case.change("label", unchanged, shifted),
    "shear": lambda case: case.change_both(unchanged, sheared),
    "background-name": background_named,
    "empty-label": lambda case: case.change("label", np.zeros_like),
    "absent-class": undeclared_class,
    "few-voxels": lambda case: case.change("label", single_voxel),
    "spacing-outlier": lambda case: case.change_both(unchanged, coarser),
    "size-outlier": lambda case: case.change_both(wider),
    "intensity-outlier": lambda case: case.change("image", lambda voxels: voxels / np.float32(1e4)),
    "voxel-order": reordered,
    "orientation-outlier": turned,
}
"""Kind of finding -> function that plants the fault and returns the file that the finding must name."""


def plant(root: Path) -> dict[str, Path]:
    """Plant faults into a data set: as many of :data:`FAULTS` as half its cases.

    Args:
        root: A folder in the layout of the Decathlon with one channel and the classes 1 and 2; it is changed.

    Returns:
        Kind of finding -> the file that it must name.
    """
    file = root / "dataset.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    entries = list(content["training"])
    planted = {}
    for number, (kind, fault) in zip(range(len(entries) // 2), FAULTS.items(), strict=False):
        planted[kind] = fault(Planter(root, entries[2 * number], entries[2 * number + 1], content))
    file.write_text(json.dumps(content), encoding="utf-8")
    return planted


def check(data: str) -> dict[str, Any]:
    """Check a data set in this process, and return the findings, wall and processor time, and the peak memory."""
    import volseg
    from shared.measure import cost_of

    begun_s = time.process_time()
    cost, findings = cost_of(lambda: volseg.check(data, workers=0))
    return {
        "seconds": round(cost.seconds, 2),
        "cpu_seconds": round(time.process_time() - begun_s, 2),
        "peak_mb": cost.peak_bytes // 1_000_000,
        "findings": [finding.to_dict() for finding in findings],
    }


def compare(planted: dict[str, Path], findings: list[dict[str, Any]]) -> dict[str, list[str]]:
    """Compare planted faults with findings, as ``volseg plan --check-only --out`` writes them.

    Returns:
        ``missed``: kinds that were planted and not found at their file; ``invented``: findings of no planted fault.
    """
    found = [(one["kind"], {Path(file).resolve() for file in one["files"]}) for one in findings]
    missed = [kind for kind, file in planted.items() if not any(kind == k and file.resolve() in f for k, f in found)]
    invented = [
        f"{kind}: {', '.join(sorted(map(str, files)))}"
        for kind, files in found
        if kind not in planted or planted[kind].resolve() not in files
    ]
    return {"missed": missed, "invented": invented}
