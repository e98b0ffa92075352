"""Entries of the encoder catalogue, small enough for a test."""

from __future__ import annotations

from typing import Any

from volseg.config.encoders import EncoderEntry


def small_entry(**numbers: Any) -> EncoderEntry:
    """Return an entry of the DINOv2 family."""
    return EncoderEntry(family="dinov2", patch=14, **numbers)
