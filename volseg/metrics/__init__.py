"""Segmentation metrics: pure functions of masks and spacing (numpy and scipy only)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from volseg.metrics.scores import case_scores
    from volseg.metrics.table import ClassScores

__all__ = ["ClassScores", "case_scores"]


def __getattr__(name: str) -> Any:
    """Import the scores on first use, because scipy is slow to import."""
    if name == "case_scores":
        from volseg.metrics.scores import case_scores

        return case_scores
    if name == "ClassScores":
        from volseg.metrics.table import ClassScores

        return ClassScores
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
