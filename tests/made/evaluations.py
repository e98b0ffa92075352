"""Small folders of masks for the evaluation tests."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np

from volseg.evaluation.results import CaseResult, Evaluation, Settings
from volseg.io.labels import LabelMap
from volseg.metrics import case_scores
from volseg.metrics.table import ClassScores

SHAPE = (6, 10, 12)


def two_organs(shift: int = 0) -> np.ndarray:
    """Two boxes, 1 and 2, moved along the second axis."""
    labels = np.zeros(SHAPE, np.uint8)
    labels[1:4, 2 + shift : 6 + shift, 1:5] = 1
    labels[2:5, 3 + shift : 6 + shift, 7:11] = 2
    return labels


def write(path: Path, labels: np.ndarray, spacing: tuple[float, ...] = (3.0, 1.0, 0.5), origin: float = 0.0) -> Path:
    """Write a NIfTI file, its folder too."""
    affine = np.diag([*spacing, 1.0])
    affine[0, 3] = origin
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(labels, affine), path)
    return path


def write_cases(folder: Path, shifts: dict[str, int], suffix: str = ".nii.gz") -> Path:
    """A folder with one label map a case."""
    for case, shift in shifts.items():
        write(folder / f"{case}{suffix}", two_organs(shift))
    return folder


def scores_of(dice: float, status: str = "ok", **values: float) -> ClassScores:
    """Scores with this Dice and made-up others."""
    nan = float("nan")
    empty = status == "both_empty"
    made = {"iou": dice / (2 - dice), "hd95": 10 * (1 - dice), "hd": 20 * (1 - dice), "assd": 5 * (1 - dice)}
    made |= {"nsd": dice, "volume_error": 0.0}
    made = {key: nan if empty else value for key, value in made.items()}
    return ClassScores(
        **{"dice": nan if empty else dice, **made, "pred_voxels": 100, "ref_voxels": 100, "status": status, **values}
    )


def evaluation_of(methods: dict[str, list[list[ClassScores] | str]], classes: tuple[str, ...]) -> Evaluation:
    """An evaluation from scores per case and class; a text in place of the scores is the error of a failed case."""
    count = len(next(iter(methods.values())))
    cases = tuple(f"case_{number}" for number in range(count))
    results = [
        CaseResult(method, case, {}, error=row)
        if isinstance(row, str)
        else CaseResult(method, case, dict(zip(classes, row, strict=True)))
        for method, rows in methods.items()
        for case, row in zip(cases, rows, strict=True)
    ]
    label_map = LabelMap({name: (number,) for number, name in enumerate(classes, start=1)})
    return Evaluation(label_map, Settings(), tuple(methods), cases, tuple(results), dict.fromkeys(methods, ()))


def expected_scores(pred: np.ndarray, ref: np.ndarray, labels: dict[str, int]) -> dict[str, ClassScores]:
    """What ``case_scores`` says for the files written here."""
    return case_scores(pred, ref, (3.0, 1.0, 0.5), labels)
