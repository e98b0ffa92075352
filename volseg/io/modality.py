"""Guess the modality of an image that does not state it."""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

CT_BELOW_HU = -200
"""An image with a value below this is taken for CT: air is near -1000 HU, and MRI is hardly ever negative."""


UNKNOWN = "unknown"
"""Name of a channel whose modality nobody states; the values of all cases decide."""


def looks_like_ct(data: NDArray[Any]) -> bool:
    """Return whether an image of unknown modality, of any shape, has values that only CT has."""
    return bool(data.min() < CT_BELOW_HU)
