"""Results of an evaluation: settings, and the scores of every method, case and class."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from volseg.evaluation.sources import MaskSource
from volseg.io.labels import LabelMap
from volseg.metrics.pair import HdMode
from volseg.metrics.table import ClassScores


@dataclass(frozen=True)
class Settings:
    """Parameters of the metrics.

    Attributes:
        hd_mode: Definition of HD95.
        nsd_tolerance_mm: Tolerance of NSD, mm.
        class_tolerance_mm: Class name -> its own tolerance.
    """

    hd_mode: HdMode = "max"
    nsd_tolerance_mm: float = 1.0
    class_tolerance_mm: Mapping[str, float] = field(default_factory=dict)

    def tolerance_mm(self, name: str) -> float:
        """Return the NSD tolerance of a class."""
        return self.class_tolerance_mm.get(name, self.nsd_tolerance_mm)


@dataclass(frozen=True)
class CaseResult:
    """Scores of one case and method.

    Attributes:
        method: Name of the method.
        case: Name of the case.
        scores: Class -> scores; empty if the case failed.
        missing: Whether the prediction is missing and was scored as an empty mask.
        error: Why the case failed; ``None`` if it did not.
        notes: Remarks for the report.
        prediction: Files of the prediction.
        reference: Files of the reference.
    """

    method: str
    case: str
    scores: dict[str, ClassScores]
    missing: bool = False
    error: str | None = None
    notes: tuple[str, ...] = ()
    prediction: MaskSource | None = None
    reference: MaskSource | None = None


@dataclass(frozen=True)
class Evaluation:
    """All results, with the classes and settings they were computed with.

    Attributes:
        label_map: The classes.
        settings: Parameters of the metrics.
        methods: Names of the methods, in the order of the arguments.
        cases: Names of the reference cases, sorted.
        results: One entry per method and case, in this order.
        unmatched: Method -> predicted cases without a reference, and files that are not masks.
    """

    label_map: LabelMap
    settings: Settings
    methods: tuple[str, ...]
    cases: tuple[str, ...]
    results: tuple[CaseResult, ...]
    unmatched: dict[str, tuple[str, ...]]

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes."""
        return tuple(self.label_map.classes)

    @property
    def failed(self) -> tuple[CaseResult, ...]:
        """Results of cases that failed."""
        return tuple(result for result in self.results if result.error is not None)

    @property
    def missing(self) -> tuple[CaseResult, ...]:
        """Results of cases without a prediction."""
        return tuple(result for result in self.results if result.missing)

    def of_method(self, method: str) -> tuple[CaseResult, ...]:
        """Return the results of one method, in the order of the cases."""
        return tuple(result for result in self.results if result.method == method)

    def values(self, method: str, metric: str) -> NDArray[np.float64]:
        """Return a metric of all cases and classes, shape (cases, classes); NaN if not defined or the case failed."""
        rows = [[_value(result, name, metric) for name in self.classes] for result in self.of_method(method)]
        return np.array(rows, dtype=np.float64).reshape(len(self.cases), len(self.classes))

    def statuses(self, method: str) -> NDArray[np.str_]:
        """Return the status of all cases and classes, shape (cases, classes); ``failed`` for cases without scores."""
        rows = [
            [str(result.scores[name]["status"]) if name in result.scores else "failed" for name in self.classes]
            for result in self.of_method(method)
        ]
        return np.array(rows, dtype=np.str_).reshape(len(self.cases), len(self.classes))


def _value(result: CaseResult, name: str, metric: str) -> float:
    if name not in result.scores:
        return float("nan")
    return float(result.scores[name][metric])
