"""Whether the slices of a series are of one scan: patient, study, echo, and how their values are scaled."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from volseg.errors import DataError, counted
from volseg.io.dicom_frames import Frame
from volseg.io.dicom_tags import ONE_SCAN

SAME_ECHO = 0.01
"""Largest relative difference of two echo times that are taken for the same."""
LISTED = 5


def check_one_scan(frames: Sequence[Frame], path: Path) -> None:
    """Check that the slices of a series are of one scan; slices that lack a tag are taken for those of the others.

    Args:
        frames: The slices of a series, in any order.
        path: The series, for messages.

    Raises:
        DataError: They are of several patients, studies, echoes or units, or some of them lack a scaling.
    """
    for keyword, name in ONE_SCAN.items():
        groups = _groups(frames, keyword)
        if len(groups) < 2 or (keyword.endswith("UID") and len(groups) == len(frames) > 2):
            continue  # anonymised file by file, with a UID for each
        texts = [f"{counted(len(group), 'slice')}: {text}, such as {group[0].name}" for text, group in groups.items()]
        more = [f"and {len(texts) - LISTED} more"] if len(texts) > LISTED else []
        raise DataError(
            f"the slices of the series are of different {name} ({keyword})",
            file=path,
            found="\n    ".join([*texts[:LISTED], *more]),
            expected="one",
            hint="move the slices of each to a folder of their own",
        )
    _check_scaling("RescaleSlope", 1.0, [frame.stated_slope for frame in frames], frames, path)
    _check_scaling("RescaleIntercept", 0.0, [frame.stated_intercept for frame in frames], frames, path)


def _groups(frames: Sequence[Frame], keyword: str) -> dict[str, list[Frame]]:
    """Return the slices by the value that they state."""
    groups: dict[str, list[Frame]] = {}
    for frame in frames:
        text = frame.header.text(keyword).strip()[:64]
        if keyword == "EchoTime":
            text = next((other for other in groups if _is_same_echo(text, other)), text)
        if text:
            groups.setdefault(text, []).append(frame)
    return groups


def _is_same_echo(text: str, other: str) -> bool:
    try:
        return abs(float(text) - float(other)) <= SAME_ECHO * abs(float(other))
    except ValueError:
        return False


def _check_scaling(
    keyword: str, neutral: float, stated: Sequence[float | None], frames: Sequence[Frame], path: Path
) -> None:
    """Check that a tag of the scaling is in all slices or in none, unless it changes nothing."""
    pairs = list(zip(stated, frames, strict=True))
    without = [frame for value, frame in pairs if value is None]
    scaled = [(value, frame) for value, frame in pairs if value not in (None, neutral)]
    if without and scaled:
        value, frame = scaled[0]
        raise DataError(
            f"some slices of the series have no {keyword}, so that their values would be of another scale",
            file=path,
            found=f"{len(without)} of {len(frames)} slices without it, such as {without[0].name}; "
            f"{value:g} in {frame.name}",
            expected="the tag in all slices, or in none",
            hint="export the series again without removing tags",
        )
