"""Amounts of memory as people write them."""

from __future__ import annotations

import argparse
import re

UNITS = {"B": 1} | {
    f"{prefix}{kind}": base**power
    for power, prefix in enumerate("KMGT", start=1)
    for kind, base in (("B", 1000), ("iB", 1024))
}
_BY_NAME = {name.lower(): size for name, size in UNITS.items()}


def size_in_bytes(text: str) -> int:
    """Bytes of ``4GB`` (10^9 each), ``1.5 GiB`` (2^30 each), ``500MB`` ...; for argparse.

    Raises:
        argparse.ArgumentTypeError: It is not a number with a unit, or less than a byte.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]+)\s*", text)
    factor = _BY_NAME.get(match[2].lower()) if match else None
    if match is None or factor is None or float(match[1]) * factor < 1:
        raise argparse.ArgumentTypeError(
            f"'{text}' is not an amount of memory, for example 4GB, 1.5GiB or 500MB (units: {', '.join(UNITS)})"
        )
    return int(float(match[1]) * factor)
