"""The summary of a data set and its plan, as text."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from volseg.errors import counted
from volseg.io.findings import Finding, counts, report
from volseg.io.labels import values_text
from volseg.planning.fingerprint import Fingerprint
from volseg.planning.plan import Plan
from volseg.planning.quantities import Quantity, number_text, quantities, smallest
from volseg.planning.reasons import times

WIDTH = 110
KEPT_TOGETHER = "\u00a0x\u00a0"  # of sizes, with spaces at which no line breaks


def summary_text(fingerprint: Fingerprint, plan: Plan, findings: Sequence[Finding] = ()) -> str:
    """Return the summary: the data set, its ranges, each decision with its reason, and what looks odd.

    Args:
        fingerprint: The measured data set.
        plan: Its plan.
        findings: What was found in the cases.
    """
    blocks = [_dataset(fingerprint), _classes(fingerprint), _ranges(fingerprint), _decisions(plan)]
    blocks.append(_tokens(plan))
    blocks.append(f"What looks odd ({counts(findings)}):\n{report(findings)}" if findings else "Nothing looks odd.")
    return "\n\n".join(blocks)


def _dataset(fingerprint: Fingerprint) -> str:
    lines = [f"{fingerprint.dataset}: {fingerprint.size_text}"]
    for number, name in enumerate(fingerprint.channels):
        lines.append(f"channel {number}: {name} ({fingerprint.channel_source})")
    return "\n".join(lines)


def _classes(fingerprint: Fingerprint) -> str:
    shown, larger = smallest([quantity for quantity in quantities(fingerprint) if quantity.group == "volume"])
    classes = fingerprint.label_map.classes
    rows: list[tuple[str, ...]] = [("class", "value", "cases", "smallest mL", "median mL", "largest mL")]
    for volume in shown:
        name, count = volume.name.removeprefix("volume of "), int(np.isfinite(volume.values).sum())
        sizes = [number_text(value) for value in _extremes(volume)] if count else ["-"] * 3
        rows.append((name, values_text(classes[name]), str(count), *sizes))
    table = "\n".join(_table(rows))
    return f"{table}\nand {larger} larger" if larger else table


def _ranges(fingerprint: Fingerprint) -> str:
    rows: list[tuple[str, ...]] = [("over the cases", "smallest", "median", "largest")]
    for quantity in quantities(fingerprint):
        if quantity.group != "volume":
            name = f"{quantity.name} ({quantity.unit})" if quantity.unit else quantity.name
            rows.append((name, *(number_text(value) for value in _extremes(quantity))))
    return "\n".join(_table(rows))


def _extremes(quantity: Quantity) -> tuple[float, float, float]:
    values = quantity.values[np.isfinite(quantity.values)]
    return float(values.min()), float(np.median(values)), float(values.max())


def _decisions(plan: Plan) -> str:
    blocks = []
    for key, reason in plan.reasons.items():
        text = f"{key.ljust(21)} {_value(plan, key)}: {reason}".replace(" x ", KEPT_TOGETHER)
        lines = textwrap.fill(text, WIDTH, subsequent_indent=" " * 22, break_on_hyphens=False)
        blocks.append(lines.replace(KEPT_TOGETHER, " x "))
    return "\n".join(["Plan (D, H, W = " + ", ".join(plan.orientation) + "):", *blocks])


def _value(plan: Plan, key: str) -> str:
    """Return the value of a decision as text."""
    value: Any = getattr(plan, key)
    if key == "spacing_mm" or key == "patch_size":
        return times(value)
    if key == "decoder_strides":
        return ", ".join("x".join(map(str, stride)) for stride in value)
    if key == "mirror_axes":
        return ", ".join("DHW"[axis] for axis in value) or "none"
    if key == "intensity":
        return ", ".join(channel.rule for channel in value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "none" if value is None else str(value)


def _tokens(plan: Plan) -> str:
    depth, height, width = plan.patch_size
    rows, columns = height // plan.token_stride, width // plan.token_stride
    tokens, slices = counted(f"{depth * rows * columns:,}", "token"), counted(depth, "slice")
    return f"A patch has {tokens}: {slices} of {rows} x {columns}."


def _table(rows: Sequence[tuple[str, ...]]) -> Iterator[str]:
    """Yield aligned lines: the first column to the left, the others to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        cells = [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        yield "  ".join([row[0].ljust(widths[0]), *cells])
