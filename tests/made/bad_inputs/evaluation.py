"""Bad inputs of ``volseg evaluate``."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

import volseg
from tests.made.bad_inputs.cases import BadInput, command
from tests.made.evaluations import two_organs, write, write_cases

LABELS = {"background": 0, "liver": 1, "spleen": 2}


def folders(pred: dict[str, int], ref: dict[str, int]) -> None:
    """Write masks and references, shifted by some voxels, and a ``dataset.json``."""
    write_cases(Path("pred"), pred)
    write_cases(Path("ref"), ref)
    Path("dataset.json").write_text(json.dumps({"labels": LABELS}))


def refused(*arguments: str, pred: str = "a", ref: str = "a") -> Callable[[], str]:
    """Return an attempt to evaluate folders of these cases."""

    def attempt() -> str:
        folders(dict.fromkeys(pred, 0), dict.fromkeys(ref, 0))
        return command("evaluate", "--out", "scores", "--no-report", *arguments)

    return attempt


def failed(damage: Callable[[], object]) -> Callable[[], str]:
    """Return an attempt to evaluate one damaged mask: the error in the tables and on the terminal."""

    def attempt() -> str:
        folders({"a": 0}, {"a": 0})
        damage()
        (case,) = volseg.evaluate("pred", "ref", dataset="dataset.json").evaluation.failed
        return f"failed: {case.method} {case.case}: {case.error}"

    return attempt


def refused_after(damage: Callable[[], object], *arguments: str) -> Callable[[], str]:
    """Return an attempt to evaluate folders after another change."""

    def attempt() -> str:
        folders({"a": 0}, {"a": 0})
        damage()
        return command("evaluate", "--out", "scores", "--no-report", "--pred", "pred", "--ref", "ref", *arguments)

    return attempt


BOTH = ("--pred", "pred", "--ref", "ref")
OTHER_LABELS = json.dumps({"labels": {"background": 0, "spleen": 1, "liver": 2}})
EVALUATION = (
    BadInput("A folder of masks with a typing error", "prde", refused("--pred", "prde", "--ref", "ref")),
    BadInput("A folder without references", "ref",
             refused_after(lambda: Path("ref/a.nii.gz").unlink())),
    BadInput("No references at all", "--ref", refused("--pred", "pred")),
    BadInput("Masks that are named otherwise than the references", "pred", refused(*BOTH, pred="xy", ref="ab")),
    BadInput("Two masks of one case", "pred", refused_after(lambda: write(Path("pred/a.nii"), two_organs()))),
    BadInput("Two methods of the same name", "pred", refused(*BOTH, "--pred", "other/pred")),
    BadInput("A tolerance that is not a number", "--nsd-tolerance", refused(*BOTH, "--nsd-tolerance", "liver=3mm")),
    BadInput("A tolerance of a class that does not exist", "livr",
             refused(*BOTH, "--dataset", "dataset.json", "--nsd-tolerance", "livr=3")),
    BadInput("A list of cases that is not there", "cases.txt", refused(*BOTH, "--cases", "cases.txt")),
    BadInput("A list of cases without references", "ref",
             refused_after(lambda: Path("cases.txt").write_text("a\nz\n"), "--cases", "cases.txt")),
    BadInput("Masks with other names of the classes", "pred",
             refused_after(lambda: Path("pred/dataset.json").write_text(OTHER_LABELS), "--dataset", "dataset.json")),
    BadInput("A mask on another grid than its reference", "pred/a.nii.gz",
             failed(lambda: write(Path("pred/a.nii.gz"), two_organs(), spacing=(3.0, 1.0, 1.0)))),
    BadInput("A mask with a value that is no class", "pred/a.nii.gz",
             failed(lambda: write(Path("pred/a.nii.gz"), 5 * two_organs()))),
    BadInput("A mask of fractions", "pred/a.nii.gz",
             failed(lambda: write(Path("pred/a.nii.gz"), two_organs().astype(np.float32) / 2))),
)  # fmt: skip
