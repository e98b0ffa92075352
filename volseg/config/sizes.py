"""Amounts of memory and disk space as text: ``4GB``, ``1.5GiB``, ``500 MB``, or bytes."""

from __future__ import annotations

import re

from volseg.errors import ConfigError

UNITS = {"B": 1} | {
    f"{prefix}{kind}": base**power
    for power, prefix in enumerate("KMGT", start=1)
    for kind, base in (("B", 1000), ("iB", 1024))
}
_FACTORS = {name.lower(): factor for name, factor in UNITS.items()} | {"": 1}
_FACTORS |= {prefix: 1000**power for power, prefix in enumerate("kmgt", start=1)}  # 8G is 8GB
SMALLEST_BARE = 10**6
"""Smallest number of bytes that is taken without a unit: 8 alone is gigabytes to some programs, megabytes to others."""


def parse_size(text: str) -> int:
    """Return the bytes of a size such as ``4GB`` (10^9 each), ``1.5 GiB`` (2^30 each) or ``4000000000`` (bytes).

    Raises:
        ConfigError: The text is not a number with a known unit, less than a byte, or a number without a unit that is
            too small to be meant as bytes.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", text)
    factor = _FACTORS.get(match[2].lower()) if match else None
    if match is None or factor is None or float(match[1]) * factor < 1:
        raise ConfigError(
            "this is not a size", found=repr(text), expected=f"for example 4GB, 1.5GiB or 500MB ({', '.join(UNITS)})"
        )
    if not match[2] and float(match[1]) < SMALLEST_BARE:
        number = match[1]
        hint = f"give the unit: {number}GB or {number}MB; {number}B if bytes are meant"
        expected = f"a number with a unit, or at least {SMALLEST_BARE} bytes"
        raise ConfigError("this size has no unit", found=repr(text), expected=expected, hint=hint)
    return int(float(match[1]) * factor)


def format_size(size_bytes: float) -> str:
    """Return bytes in a readable unit, in powers of 1000: ``4.3 MB``."""
    for unit in ("bytes", "KB", "MB", "GB"):
        if size_bytes < 1000:
            return f"{size_bytes:.3g} {unit}"
        size_bytes /= 1000
    return f"{size_bytes:.3g} TB"
