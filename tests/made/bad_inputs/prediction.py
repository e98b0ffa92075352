"""Bad inputs of ``volseg predict``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np

import volseg
from tests.made.bad_inputs.cases import BadInput, command
from tests.made.bad_inputs.models import NAME, model
from tests.made.datasets import save_nifti
from tests.made.trained import LAS, make_scan

SCANS = Path("scans")
PREDICT = ("predict", "--device", "cpu", "--model", NAME, "--output", "masks", "--input")


def scans(*names: str) -> None:
    """Write a model file, and scans into a folder."""
    model()
    SCANS.mkdir()
    for name in names:
        values, _, grid = make_scan(0)
        nibabel.save(nibabel.Nifti1Image(values, grid.affine), SCANS / name)


def refused(*arguments: str, names: tuple[str, ...] = ("a.nii.gz", "b.nii.gz")) -> Callable[[], str]:
    """Return an attempt to run a command, with a model and scans."""

    def attempt() -> str:
        scans(*names)
        return command(*PREDICT, *arguments)

    return attempt


def failed(output: str = "masks", **options: object) -> str:
    """Return the error of the one scan, as the log and ``summary.json`` state it."""
    summary = volseg.predict(NAME, SCANS, output, device="cpu", **options)  # type: ignore[arg-type]
    assert [result.status for result in summary.results] == ["failed"]
    return f"{summary.results[0].case} failed: {summary.results[0].error}"


def with_channels() -> str:
    scans()
    values = make_scan(0)[0]
    save_nifti(SCANS / "a.nii.gz", np.stack([values, values], -1), LAS)
    return failed()


def other_voxel_size() -> str:
    scans()
    save_nifti(SCANS / "a.nii.gz", make_scan(0)[0], LAS * [[1000], [1000], [1000], [1]])
    return failed()


def mask_by_hand() -> str:
    scans("a.nii.gz")
    save_nifti(Path("masks/a.nii.gz"), make_scan(0)[1].astype(np.uint8), LAS)
    return failed()


def mask_in_another_format() -> object:
    scans("a.nii.gz")
    save_nifti(Path("masks/a.nii.gz"), make_scan(0)[1].astype(np.uint8), LAS)
    return volseg.predict(NAME, SCANS, "masks", device="cpu", mask_format="mha")


def replaced_by_hand() -> str:
    scans("a.nii.gz")
    save_nifti(Path("masks/a.nii.gz"), make_scan(0)[1].astype(np.uint8), LAS)
    return failed(overwrite=True)


def other_setting() -> str:
    scans("a.nii.gz")
    volseg.predict(NAME, SCANS, "masks", device="cpu")
    return failed(tta=True)


def little_memory() -> str:
    scans("a.nii.gz")
    return failed(max_memory="10KB")


def dicom_mask() -> str:
    scans("a.nii.gz")
    return failed(mask_format="dicom-seg")


def listed(text: str) -> Callable[[], str]:
    """Return an attempt to predict the scans of a list."""

    def attempt() -> str:
        scans("a.nii.gz")
        Path("list.txt").write_text(text)
        return command(*PREDICT, "list.txt")

    return attempt


def saved_twice() -> None:
    scans("a.nii.gz")
    mask = volseg.load(NAME, device="cpu").predict(SCANS / "a.nii.gz")
    mask.save("mask.nii.gz")
    mask.save("mask.nii.gz")


def given(scan: object) -> Callable[[], object]:
    """Return an attempt to predict something from Python."""

    def attempt() -> object:
        model()
        return volseg.load(NAME, device="cpu").predict(scan)

    return attempt


PREDICTION = (
    BadInput("A folder without scans", "scans", refused("scans", names=())),
    BadInput("Two scans of the same name", "scans", refused("scans", names=("a.nii", "a.nii.gz"))),
    BadInput("One output file for several scans", "mask.nii.gz", refused("scans", "--output", "mask.nii.gz")),
    BadInput("An output file of pictures", "mask.png", refused("scans/a.nii.gz", "--output", "mask.png")),
    BadInput("Masks that would lie among the scans", "scans", refused("scans", "--output", "scans")),
    BadInput("An output file of another format than `--format`", "mask.nii.gz",
             refused("scans/a.nii.gz", "--format", "mha", "--output", "mask.nii.gz")),
    BadInput("An empty list of scans", "list.txt", listed("# nothing yet\n")),
    BadInput("A list of scans that are not there", "list.txt", listed("b.nii.gz\nc.nii.gz\n")),
    BadInput("A scan with more channels than the model", "a.nii.gz", with_channels),
    BadInput("A scan in micrometres whose header says millimetres", "a.nii.gz", other_voxel_size),
    BadInput("Too little memory", "--max-memory", little_memory),
    BadInput("A mask in DICOM for a scan that is not", "a.nii.gz", dicom_mask),
    BadInput("A mask that was there before", "a.nii.gz", mask_by_hand),
    BadInput("A mask that was predicted with other settings", "tta", other_setting),
    BadInput("A mask of the scan in another format", "a.nii.gz", mask_in_another_format),
    BadInput("A mask made by hand, with `--overwrite`", "a.nii.gz", replaced_by_hand),
    BadInput("A mask saved over another, from Python", "mask.nii.gz", saved_twice),
    BadInput("An array without an affine, from Python", "affine", given(np.zeros((8, 8, 8)))),
    BadInput("An image of nibabel, from Python", "Nifti1Image",
             given(nibabel.Nifti1Image(np.zeros((8, 8, 8), np.uint8), np.eye(4)))),
    BadInput("Nothing, from Python", "NoneType", given(None)),
)  # fmt: skip
