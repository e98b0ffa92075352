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


def parse_size(text: str) -> int:
    """Return the bytes of a size such as ``4GB`` (10^9 each), ``1.5 GiB`` (2^30 each) or ``1000`` (bytes).

    Raises:
        ConfigError: The text is not a number with a known unit, or less than a byte.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", text)
    factor = _FACTORS.get(match[2].lower()) if match else None
    if match is None or factor is None or float(match[1]) * factor < 1:
        raise ConfigError(
            "this is not a size", found=repr(text), expected=f"for example 4GB, 1.5GiB or 500MB ({', '.join(UNITS)})"
        )
    return int(float(match[1]) * factor)


def format_size(size_bytes: float) -> str:
    """Return bytes in a readable unit, in powers of 1000: ``4.3 MB``."""
    for unit in ("bytes", "KB", "MB", "GB"):
        if size_bytes < 1000:
            return f"{size_bytes:.3g} {unit}"
        size_bytes /= 1000
    return f"{size_bytes:.3g} TB"
