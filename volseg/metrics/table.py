"""The table of metrics, which defines the columns of CSV, JSON, Markdown, report, comparisons and plots.

A new metric is a function of a :class:`~volseg.metrics.pair.ClassPair` and one row here.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from volseg.metrics.overlap import dice, iou, volume_error
from volseg.metrics.pair import ClassPair
from volseg.metrics.policy import status_of
from volseg.metrics.surface import assd, hd, hd95, nsd

ClassScores = dict[str, Any]
"""Scores of one class in one case: every metric by name (NaN where it is not defined), ``pred_voxels``, ``ref_voxels``
and ``status`` (``ok``, ``missed``, ``spurious`` or ``both_empty``)."""


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One metric: a row of the table.

    Attributes:
        name: Key in scores and column in ``cases.csv``.
        title: Name in tables and plots.
        unit: ``mm``, or empty for a number without unit.
        digits: Decimals in tables.
        compute: Function of a class that both masks have.
        elements: Number of elements in prediction and reference that the metric is computed from.
        one_empty: Value when one side has no elements: ``zero``, ``diagonal`` (of the image), or ``compute`` for a
            metric that handles it.
        higher_is_better: Direction; ``None`` for a signed error, which is not compared between methods.
        headline: Whether the main tables and plots show it.
    """

    name: str
    title: str
    unit: str = ""
    digits: int = 3
    compute: Callable[[ClassPair], float]
    elements: Callable[[ClassPair], tuple[int, int]]
    one_empty: Literal["zero", "diagonal", "compute"]
    higher_is_better: bool | None
    headline: bool = False

    @property
    def column_title(self) -> str:
        """Title with unit, as the header of a column."""
        return f"{self.title} {self.unit}".strip()

    @property
    def axis_title(self) -> str:
        """Title with unit, as the label of an axis."""
        return f"{self.title} ({self.unit})" if self.unit else self.title

    @property
    def is_overlap(self) -> bool:
        """Whether 0 is the worst and 1 the best score."""
        return self.one_empty == "zero"

    def score(self, pair: ClassPair) -> float:
        """Return the score of a class; NaN if both masks have no elements (see :mod:`volseg.metrics.policy`)."""
        status = status_of(*self.elements(pair))
        if status == "both_empty":
            return math.nan
        if status == "ok" or self.one_empty == "compute":
            return self.compute(pair)
        return pair.diagonal_mm if self.one_empty == "diagonal" else 0.0


METRICS = (
    Metric(
        name="dice",
        title="Dice",
        compute=dice,
        elements=lambda pair: pair.voxels,
        one_empty="zero",
        higher_is_better=True,
        headline=True,
    ),
    Metric(
        name="iou",
        title="IoU",
        compute=iou,
        elements=lambda pair: pair.voxels,
        one_empty="zero",
        higher_is_better=True,
    ),
    Metric(
        name="hd95",
        title="HD95",
        unit="mm",
        digits=2,
        compute=hd95,
        elements=lambda pair: pair.hd_elements,
        one_empty="diagonal",
        higher_is_better=False,
        headline=True,
    ),
    Metric(
        name="hd",
        title="HD",
        unit="mm",
        digits=2,
        compute=hd,
        elements=lambda pair: pair.hd_elements,
        one_empty="diagonal",
        higher_is_better=False,
    ),
    Metric(
        name="assd",
        title="ASSD",
        unit="mm",
        digits=2,
        compute=assd,
        elements=lambda pair: pair.border_voxels,
        one_empty="diagonal",
        higher_is_better=False,
    ),
    Metric(
        name="nsd",
        title="NSD",
        compute=nsd,
        elements=lambda pair: pair.surfels,
        one_empty="zero",
        higher_is_better=True,
        headline=True,
    ),
    Metric(
        name="volume_error",
        title="volume error",
        compute=volume_error,
        elements=lambda pair: pair.voxels,
        one_empty="compute",
        higher_is_better=None,
    ),
)
METRIC = {metric.name: metric for metric in METRICS}
"""The rows by name."""
HEADLINE = tuple(metric for metric in METRICS if metric.headline)
"""The metrics of the main tables and plots."""


def class_scores(pair: ClassPair) -> ClassScores:
    """Return all scores of a class."""
    return {
        **{metric.name: metric.score(pair) for metric in METRICS},
        "pred_voxels": pair.pred_voxels,
        "ref_voxels": pair.ref_voxels,
        "status": status_of(*pair.voxels),
    }


def both_empty_scores() -> ClassScores:
    """Return the scores of a class that is empty in both masks."""
    nan_scores: ClassScores = dict.fromkeys(METRIC, math.nan)
    return {**nan_scores, "pred_voxels": 0, "ref_voxels": 0, "status": "both_empty"}
