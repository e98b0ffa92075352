"""Values that every tool returns for empty masks."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from metrics.libraries import PEERS, SHARED
from volseg.metrics.scores import case_scores

SPACING_MM = (3.0, 1.0, 1.0)


def empty_masks() -> dict[str, dict[str, dict[str, str]]]:
    """Return the values, as text, when the reference, the prediction or both are empty; an exception by its name."""
    organ = np.zeros((20, 40, 40), bool)
    organ[5:12, 10:25, 12:30] = True
    empty = np.zeros_like(organ)
    values: dict[str, dict[str, dict[str, str]]] = {}
    for situation, pred, ref in (("missed", empty, organ), ("spurious", organ, empty), ("both empty", empty, empty)):
        ours = case_scores(pred, ref, SPACING_MM, [1])[1]
        values[situation] = {"volseg": {name: value_text(partial(ours.__getitem__, name)) for name in SHARED}}
        for tool in PEERS:
            metrics = PEERS[tool](pred, ref, SPACING_MM)
            values[situation][tool] = {
                name: value_text(metrics[name]) if name in metrics else "not offered" for name in SHARED
            }
    return values


def value_text(compute: Callable[[], Any]) -> str:
    """Return a value as text, or the name of the exception."""
    try:
        return f"{float(compute()):.4g}"
    except Exception as error:
        return type(error).__name__
