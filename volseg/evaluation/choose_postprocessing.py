"""Choice of the postprocessing of each class: what raises its Dice on masks of cases that no model was trained on.

Every step is compared with the masks without it, paired by case, and is chosen only where the mean difference is at
least 0.0001, the last digit that is shown, and its 95% bootstrap interval lies above zero. First the removal of
components: all but the largest, or those below a volume. If several help, the one with the largest mean difference is
chosen. Then the filling of holes, on top of it.

Source: Isensee et al., nnU-Net (2021), which chooses by the mean alone.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from volseg.errors import VolsegError
from volseg.evaluation.compare import compare_paired
from volseg.geometry.volume import Mask
from volseg.io.cases import Case
from volseg.io.checks import read_label
from volseg.io.labels import LabelMap
from volseg.io.volumes import read_mask
from volseg.metrics.overlap import count_voxels
from volseg.parallel import Progress, run_tasks
from volseg.postprocessing.rules import Postprocessing

logger = logging.getLogger(__name__)

Array = NDArray[np.float64]
FEWEST_CASES = 6
"""With fewer cases no signed-rank test reaches 5%, even if all agree; then nothing is chosen."""
SMALLEST_GAIN = 1e-4
"""Mean difference of Dice from which on a step is chosen: the last digit that is shown."""
SMALL = (0.01, 0.1)
"""The minimum volumes that are tried, as fractions of the median volume of the class in the references."""
DIGITS = 2
"""Significant digits of a minimum volume."""


@dataclass(frozen=True)
class PredictedCase:
    """A labelled case and the file of its mask."""

    case: Case
    mask: Path


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A step that was tried for a class.

    Attributes:
        label: Name of the class.
        step: ``largest_component``, ``min_volume_ml`` or ``fill_holes``.
        volume_ml: The minimum volume, where the step has one.
        comparison: Dice with the step minus Dice without it: ``n``, ``mean_difference``, ``ci95``, ``wins`` ...
        chosen: Whether the step is part of the choice.
    """

    label: str
    step: str
    volume_ml: float | None
    comparison: Mapping[str, Any]
    chosen: bool = False

    @property
    def helps(self) -> bool:
        """Whether the mean difference can be seen, and its interval lies above zero."""
        return bool(self.comparison["mean_difference"] >= SMALLEST_GAIN and self.comparison["ci95"][0] > 0)

    def __str__(self) -> str:
        low, high = self.comparison["ci95"]
        volume = "" if self.volume_ml is None else f" {self.volume_ml:g}"
        numbers = f"{self.comparison['mean_difference']:+.4f} [{low:+.4f}, {high:+.4f}]"
        counts = f"{self.comparison['wins']} better, {self.comparison['losses']} worse of {self.comparison['n']} cases"
        return f"{self.label}, {self.step}{volume}: Dice {numbers}, {counts}"

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return {**vars(self), "comparison": dict(self.comparison)}


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The postprocessing that helps, and everything that was tried.

    Attributes:
        postprocessing: The steps that were chosen.
        trials: All steps that were tried.
        cases: Number of cases.
        reason: Why nothing was tried; ``None`` otherwise.
    """

    postprocessing: Postprocessing
    trials: tuple[Trial, ...] = ()
    cases: int
    reason: str | None = None


def choose_postprocessing(
    cases: Sequence[PredictedCase], label_map: LabelMap, *, workers: int = 0, progress: Progress | None = None
) -> Choice:
    """Choose the postprocessing of each class by masks and references.

    Dice of a class that is absent from both masks counts as 1, so that removing all of a class counts where the
    reference has none. Cases that cannot be read are left out, with a warning.

    Args:
        cases: Cases with masks of models that were not trained on them.
        label_map: The classes.
        workers: Processes; 0 works in this one.
        progress: Called with the number of finished cases and of all, for each of three passes.
    """
    if label_map.regions:
        return _nothing(cases, "postprocessing is chosen for classes that exclude each other, not for regions")
    volumes = np.array(_each_case(partial(_reference_ml, label_map=label_map), cases, workers, progress))
    if len(volumes) < FEWEST_CASES:
        return _nothing(cases, f"a choice takes {FEWEST_CASES} cases or more, not {len(volumes)}")
    names = tuple(label_map.classes)
    removals = [("largest_component", dict.fromkeys(names, 0.0))]
    removals += [("min_volume_ml", dict(zip(names, sizes, strict=True))) for sizes in _small_ml(volumes)]
    steps = [Postprocessing(largest_component=names), *(Postprocessing(min_volume_ml=ml) for _, ml in removals[1:])]
    dice = _dice(cases, [Postprocessing(), *steps], label_map, workers, progress)
    trials = [
        Trial(label=name, step=step, volume_ml=ml[name] or None, comparison=comparison)
        for (step, ml), compared in zip(removals, dice[1:], strict=True)
        for name, comparison in compare_paired(compared - dice[0], names, True)["classes"].items()
    ]
    trials = [replace(one, chosen=one is _best(trials, one.label)) for one in trials]
    chosen = _combined(trials)
    without, filled = _dice(cases, [chosen, replace(chosen, fill_holes=names)], label_map, workers, progress)
    for name, comparison in compare_paired(filled - without, names, True)["classes"].items():
        one = Trial(label=name, step="fill_holes", volume_ml=None, comparison=comparison)
        trials.append(replace(one, chosen=one.helps))
    for one in trials:
        logger.info("postprocessing: %s%s", one, " (chosen)" if one.chosen else "")
    return Choice(postprocessing=_combined(trials), trials=tuple(trials), cases=len(volumes))


def _nothing(cases: Sequence[PredictedCase], reason: str) -> Choice:
    logger.info("postprocessing: %s", reason)
    return Choice(postprocessing=Postprocessing(), cases=len(cases), reason=reason)


def _best(trials: Sequence[Trial], label: str) -> Trial | None:
    """Return the step for a class that helps most, if one helps; the first of several that are equal."""
    helpful = [one for one in trials if one.label == label and one.helps]
    return max(helpful, key=lambda one: float(one.comparison["mean_difference"]), default=None)


def _combined(trials: Sequence[Trial]) -> Postprocessing:
    chosen = [one for one in trials if one.chosen]
    return Postprocessing(
        largest_component=tuple(one.label for one in chosen if one.step == "largest_component"),
        min_volume_ml={one.label: one.volume_ml for one in chosen if one.volume_ml is not None},
        fill_holes=tuple(one.label for one in chosen if one.step == "fill_holes"),
    )


def _small_ml(volumes: Array) -> list[list[float]]:
    """Return for each fraction the minimum volume of every class, in ml; 0 for a class without references.

    Args:
        volumes: Volumes in the references, ml, shape (cases, classes).
    """
    present = [column[column > 0] for column in volumes.T]
    medians = [float(np.median(column)) if len(column) else 0.0 for column in present]
    return [[float(f"{fraction * median:.{DIGITS}g}") for median in medians] for fraction in SMALL]


def _each_case(work: Any, cases: Sequence[PredictedCase], workers: int, progress: Progress | None) -> list[Any]:
    """Return the results of all cases that can be read, in their order."""
    results: dict[int, Any] = {}
    outcomes = run_tasks(work, cases, workers)
    for done, (index, outcome) in enumerate(outcomes, start=1):
        try:
            results[index] = outcome()
        except VolsegError as error:
            logger.warning("postprocessing: %s is left out: %s", cases[index].case.id, error)
        if progress is not None:
            progress(done, len(cases))
    return [results[index] for index in sorted(results)]


def _reference_ml(predicted: PredictedCase, label_map: LabelMap) -> Array:
    """Return the volume of each class in the reference of a case, in ml."""
    mask = read_mask(predicted.mask)
    reference = read_label(predicted.case, mask.grid).labels
    _, voxels, _ = count_voxels(np.zeros_like(reference), reference)
    return _of_classes(voxels, label_map) * mask.grid.voxel_ml


def _dice(
    cases: Sequence[PredictedCase],
    variants: Sequence[Postprocessing],
    label_map: LabelMap,
    workers: int,
    progress: Progress | None,
) -> Array:
    """Return the Dice of the masks after each postprocessing, shape (variants, cases, classes)."""
    work = partial(_case_dice, variants=variants, label_map=label_map)
    return np.stack(_each_case(work, cases, workers, progress), axis=1)


def _case_dice(predicted: PredictedCase, variants: Sequence[Postprocessing], label_map: LabelMap) -> Array:
    """Return the Dice of one case, shape (variants, classes)."""
    mask = read_mask(predicted.mask)
    reference = read_label(predicted.case, mask.grid).labels
    ignored = None if label_map.ignore_label is None else reference == label_map.ignore_label
    values = label_map.to_plain()
    rows = []
    for variant in variants:
        labels = variant.apply(Mask(mask.labels, mask.grid), values)[0].labels
        pair = (labels, reference) if ignored is None else (np.where(ignored, 0, one) for one in (labels, reference))
        sizes, expected, both = (_of_classes(count, label_map) for count in count_voxels(*pair))
        total = sizes + expected
        rows.append(np.divide(2 * both, total, out=np.ones(len(total)), where=total > 0))
    return np.stack(rows)


def _of_classes(counts: NDArray[np.int64], label_map: LabelMap) -> Array:
    """Return the voxels of each class from those of each label value."""
    values = [value for (value,) in label_map.classes.values()]
    return np.array([counts[value] if value < len(counts) else 0 for value in values], dtype=np.float64)
