"""Entries of the encoder catalogue, small enough for a test."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from volseg.config.encoders import CATALOGUE, EncoderEntry


def small_entry(**numbers: Any) -> EncoderEntry:
    """Return an entry of the DINOv2 family."""
    return replace(CATALOGUE["tiny"], **{"grid": 37, **numbers})
