"""What ITK ignores in headers of NRRD and MetaImage: the space, units of length, and that directions are missing."""

from __future__ import annotations

import re
from pathlib import Path

from volseg.errors import DataError
from volseg.io.remarks import remark

NRRD = b"NRRD"
HEADER_END = re.compile(rb"\r?\n\r?\n|ElementDataFile[ \t]*=[^\n]*\n")
SPACE = re.compile(r"(left-posterior|right-anterior|left-anterior)-superior(-time)?|(LPS|RAS|LAS)T?", re.IGNORECASE)
UNITS_MM = {"m": 1000.0, "in": 25.4, "cm": 10.0, "mm": 1.0, "um": 1e-3, "nm": 1e-6}
OTHER_NAMES = {
    **{"metre": "m", "meter": "m", "inch": "in", "centimetre": "cm", "centimeter": "cm"},
    **{"millimetre": "mm", "millimeter": "mm", "micrometre": "um", "micrometer": "um", "micron": "um"},
    **{"\xb5m": "um", "\u03bcm": "um", "nanometre": "nm", "nanometer": "nm"},
}
UNKNOWN = ("", "?", "???", "unknown", "none", "pixel", "px", "voxel")
"""Texts that state no unit; mm is assumed, as by every program."""
TIMES = ("s", "ms", "sec", "second")
QUOTED = re.compile(r'"([^"]*)"')


def check_space(header: str, path: Path) -> None:
    """Check that the space of an NRRD header is that of the patient.

    ITK takes any other space as LPS.

    Args:
        header: The text of the header.
        path: The file, for messages.

    Raises:
        DataError: It is another one, such as that of the scanner.
    """
    space = _field(header, "space")
    if header.startswith(NRRD.decode()) and space is not None and not SPACE.fullmatch(space):
        raise DataError(
            "the space of the header does not say where left, front and top of the patient are",
            file=path,
            found=f"space: {space}",
            expected="left-posterior-superior, right-anterior-superior or left-anterior-superior",
            hint="export the file again from the original scan, or correct the header if you know the directions",
        )


def unit_of(header: str, path: Path) -> str:
    """Return the unit of lengths in a header, a key of ``UNITS_MM``; ``mm`` where none is stated.

    Raises:
        DataError: It is not known, or the axes have different units.
    """
    if header.startswith(NRRD.decode()):
        field = "space units" if _field(header, "space units") is not None else "units"
        stated = QUOTED.findall(_field(header, field) or "")
    else:
        field, stated = "DistanceUnits", [_field(header, "DistanceUnits") or ""]
    units = [text.strip() for text in stated if text.strip().lower() not in (*UNKNOWN, *TIMES)]
    names = {_unit(text) for text in units}
    one_axis_of_several = field != "DistanceUnits" and len(units) < 3
    if names <= {"mm"}:
        return "mm"
    if len(names) > 1 or None in names or one_axis_of_several:
        expected = f"one of {', '.join(UNITS_MM)} for all three axes"
        hint = "correct the header, or export the file again in mm"
        raise DataError(
            "the unit of lengths in the header is not known",
            file=path,
            found=f"{field}: {', '.join(stated)}"[:200],
            expected=expected,
            hint=hint,
        )
    return next(name for name in names if name is not None)


AS_BY_ITK = "taken as left, posterior, superior, as by ITK"


def report(header: str, path: Path) -> None:
    """Report what was assumed about a header, or converted."""
    unit = unit_of(header, path)
    if unit != "mm":
        remark("unit", path, f"lengths in {unit}")
    if header.startswith(NRRD.decode()):
        names = [name for name in ("space", "space directions") if _field(header, name) is None]
    else:
        stated = any(_field(header, name) for name in ("TransformMatrix", "Rotation", "Orientation"))
        names = [] if stated else ["TransformMatrix"]
    if names:
        orientation = _field(header, "AnatomicalOrientation")
        ignored = f"; AnatomicalOrientation = {orientation[:20]} is ignored" if orientation else ""
        remark("no-directions", path, f"no {' and no '.join(names)} in the header{ignored}; {AS_BY_ITK}")


def with_unit(content: bytes, unit: str) -> bytes:
    """Return an NRRD or MetaImage file with its unit of lengths in the header, where that is not mm."""
    end = HEADER_END.search(content)
    if unit == "mm" or end is None:
        return content
    quoted = " ".join([f'"{unit}"'] * 3)
    line = f"\nspace units: {quoted}" if content.startswith(NRRD) else f"DistanceUnits = {unit}\n"
    return content[: end.start()] + line.encode() + content[end.start() :]


def text_of(latin: str) -> str:
    """Return text of a header, which is latin-1 here to keep the bytes, as UTF-8 if it is that."""
    try:
        return latin.encode("latin-1").decode("utf-8")
    except UnicodeDecodeError:
        return latin


def _field(header: str, name: str) -> str | None:
    """Return the value of a field: ``name: value`` in NRRD (``name:=value`` is no field), ``name = value`` else."""
    sign = ":(?!=)" if header.startswith(NRRD.decode()) else "[ \t]*[=:]"
    match = re.search(rf"^[ \t]*{name}{sign}[ \t]*(.*?)[ \t]*\r?$", header, re.MULTILINE | re.IGNORECASE)
    return text_of(match[1]) if match else None


def _unit(text: str) -> str | None:
    name = text.lower()
    if name in UNITS_MM:
        return name
    return OTHER_NAMES.get(name) or OTHER_NAMES.get(name.removesuffix("es")) or OTHER_NAMES.get(name.removesuffix("s"))
