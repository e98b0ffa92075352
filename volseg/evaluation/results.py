"""What an evaluation found: the scores of every method, case and class."""

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
    """How scores are computed.

    Attributes:
        hd_mode: Definition of HD95.
        nsd_tolerance_mm: Tolerance of NSD, mm.
        class_tolerance_mm: Tolerances of single classes that differ from it.
    """

    hd_mode: HdMode = "max"
    nsd_tolerance_mm: float = 1.0
    class_tolerance_mm: Mapping[str, float] = field(default_factory=dict)

    def tolerance_mm(self, name: str) -> float:
        """NSD tolerance of a class."""
        return self.class_tolerance_mm.get(name, self.nsd_tolerance_mm)


@dataclass(frozen=True)
class CaseResult:
    """One case of one method.

    Attributes:
        method: Name of the method.
        case: Name of the case.
        scores: Class -> scores; empty if the case failed.
        missing: There was no prediction; it was scored as an empty mask.
        error: Why the case could not be scored.
        notes: What else a reader should know.
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
    """All results, and what they were computed from.

    Attributes:
        label_map: The classes.
        settings: How scores were computed.
        methods: Names of the methods, in the order given.
        cases: Names of the reference cases, sorted.
        results: One entry for each method and case, in this order.
        unmatched: Method -> predicted cases without a reference and files that are no masks.
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
        """Cases that could not be scored."""
        return tuple(result for result in self.results if result.error is not None)

    @property
    def missing(self) -> tuple[CaseResult, ...]:
        """Cases without a prediction."""
        return tuple(result for result in self.results if result.missing)

    def of_method(self, method: str) -> tuple[CaseResult, ...]:
        """The results of one method, in the order of the cases."""
        return tuple(result for result in self.results if result.method == method)

    def values(self, method: str, metric: str) -> NDArray[np.float64]:
        """One metric of all cases and classes, shape (cases, classes); NaN where not defined or the case failed."""
        rows = [[_value(result, name, metric) for name in self.classes] for result in self.of_method(method)]
        return np.array(rows, dtype=np.float64).reshape(len(self.cases), len(self.classes))

    def statuses(self, method: str) -> NDArray[np.str_]:
        """The status of all cases and classes, shape (cases, classes); ``failed`` for cases without scores."""
        rows = [
            [str(result.scores[name]["status"]) if name in result.scores else "failed" for name in self.classes]
            for result in self.of_method(method)
        ]
        return np.array(rows, dtype=np.str_).reshape(len(self.cases), len(self.classes))


def _value(result: CaseResult, name: str, metric: str) -> float:
    if name not in result.scores:
        return float("nan")
    return float(result.scores[name][metric])
