"""Damage to bytes, documents and headers, drawn from a seeded generator."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

Generator = np.random.Generator

DEEP = "[" * 10_000 + "]" * 10_000
BOMB = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{after}: &{after} [{', '.join([f'*{before}'] * 10)}]\n"
    for before, after in zip("abcdefgh", "bcdefghi", strict=True)
)
VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 65_536, 300_000_000, 2**31, 2**63, 10**400, 0.5, 1e308, -1e308, 1e-320),
    *(float("nan"), float("inf"), "", " ", "x", "x" * 10_000, "..", "../../x", "/", "\0", "\ud800", "1", "nan"),
    *("${oc.env:HOME}", "${a}", "!!python/object/apply:os.getcwd []", [], {}, [[]], [None], {"": None}, [0] * 10_000),
)
"""What takes the place of a value in a document."""
TEXTS = (
    "",
    "null",
    "[]",
    "{}",
    "0",
    '"x"',
    DEEP,
    '{"a":' * 10_000,
    "9" * 5_000,
    BOMB,
    "\ufeff{}",
    "[1,",
    "%PDF",
    "\0" * 100,
)
"""What takes the place of a document."""


@dataclass(frozen=True)
class Mutant:
    """A damaged file.

    Attributes:
        kind: What it was.
        note: How it was damaged.
        path: The file, or the folder that is read.
        read: Reads it.
    """

    kind: str
    note: str
    path: Path
    read: Callable[[], Any]


def damage_bytes(data: bytes, rng: Generator) -> tuple[bytes, str]:
    """Return damaged bytes, and how they were damaged."""
    kind = str(rng.choice(("bits", "bytes", "cut", "insert", "remove", "swap", "zero", "repeat", "other end")))
    size = len(data)
    # Half of all damage is near the beginning, where the headers are.
    first = int(rng.integers(0, min(size, 600) if rng.random() < 0.5 else size)) if size else 0
    length = int(min(size - first, 2 ** rng.integers(0, 12)))
    part = data[first : first + length]
    if kind in ("bits", "bytes"):
        changed = bytearray(data)
        for _ in range(int(2 ** rng.integers(0, 6))):
            place = int(rng.integers(first, first + length)) if length else 0
            if size:
                changed[place] ^= 1 << int(rng.integers(0, 8)) if kind == "bits" else int(rng.integers(1, 256))
        return bytes(changed), f"{kind} at {first}"
    if kind == "swap" and size:
        other = int(rng.integers(0, size))
        low, high = sorted((first, other))
        length = min(length, high - low, size - high)
        a, b = data[low : low + length], data[high : high + length]
        return data[:low] + b + data[low + length : high] + a + data[high + length :], f"swap of {low} and {high}"
    replaced = {
        "cut": data[:first],
        "insert": data[:first] + rng.bytes(length) + data[first:],
        "remove": data[:first] + data[first + length :],
        "zero": data[:first] + bytes(length) + data[first + length :],
        "repeat": data[:first] + part * 3 + data[first + length :],
    }
    return replaced.get(kind, data + rng.bytes(length)), f"{kind} at {first}, {length} bytes"


def damage_document(document: Any, rng: Generator) -> tuple[str, str]:
    """Return the JSON text of a document in which some values were replaced, removed, renamed or doubled."""
    if rng.random() < 0.05:
        text = str(rng.choice(np.array(TEXTS, dtype=object)))
        return text, f"document {text[:20]!r}"
    changed, notes = copy.deepcopy(document), []
    for _ in range(int(rng.integers(1, 4))):
        changed, note = damage_value(changed, rng)
        notes.append(note)
    text = json.dumps(changed, indent=int(rng.integers(0, 3)))
    if rng.random() < 0.05:  # numbers that json.dumps does not write
        text = text.replace("1", "9" * 5_000, 1)
        notes.append("5000 digits")
    if rng.random() < 0.03:
        text = text.replace("null", DEEP, 1).replace('""', DEEP, 1)
        notes.append("deep")
    return text, "; ".join(notes)


def damage_value(document: Any, rng: Generator) -> tuple[Any, str]:
    """Change one value somewhere inside a document of mappings, lists and plain values."""
    holders = list(_holders(document))
    if not holders:
        return VALUES[int(rng.integers(len(VALUES)))], "whole"
    holder = holders[int(rng.integers(len(holders)))]
    keys = list(holder) if isinstance(holder, dict) else list(range(len(holder)))
    key = keys[int(rng.integers(len(keys)))]
    kind = str(rng.choice(("replace", "replace", "replace", "number", "remove", "rename", "swap", "double", "wrap")))
    if kind == "remove":
        del holder[key]
    elif kind == "rename" and isinstance(holder, dict):
        holder[str(rng.choice(("", "x", "..", str(key).upper(), f" {key}", "x" * 300)))] = holder.pop(key)
    elif kind == "swap":
        other = keys[int(rng.integers(len(keys)))]
        holder[key], holder[other] = holder[other], holder[key]
    elif kind == "double" and isinstance(holder, list):
        holder.insert(key, copy.deepcopy(holder[key]))
    elif kind == "wrap":
        holder[key] = [holder[key]] if rng.random() < 0.5 else {"x": holder[key]}
    elif kind == "number" and isinstance(holder[key], (int, float)):
        holder[key] = draw_number(holder[key], rng)
    else:
        holder[key] = copy.deepcopy(VALUES[int(rng.integers(len(VALUES)))])
    return document, f"{kind} of {str(key)[:40]!r}"


def draw_number(value: float, rng: Generator) -> Any:
    """Return a number near another, or far from it."""
    choices = (
        *(lambda: value + 1, lambda: value - 1, lambda: -value, lambda: value * 1000, lambda: value * 1e-6),
        *(lambda: float(value), lambda: str(value), lambda: int(value) << 40),
    )
    try:
        return choices[int(rng.integers(len(choices)))]()
    except (OverflowError, ValueError):  # infinity and NaN have no integers
        return 0


def _holders(document: Any) -> Any:
    """Yield every mapping and list that is not empty."""
    if isinstance(document, (dict, list)) and document:
        yield document
        for value in document.values() if isinstance(document, dict) else document:
            yield from _holders(value)


def damage_header(data: bytes, rng: Generator, *, layout: np.dtype[Any]) -> tuple[bytes, str]:
    """Set one to three fields of a binary header to extreme values.

    Args:
        data: The file.
        rng: Generator.
        layout: Fields of the header at its beginning.
    """
    changed = bytearray(data)
    header = np.frombuffer(changed, layout, count=1)
    notes = []
    for _ in range(int(rng.integers(1, 4))):
        name = str(rng.choice(np.array(header.dtype.names, dtype=object)))
        field = header[name].reshape(-1)
        place = int(rng.integers(field.size))
        if field.dtype.kind in "iu":
            limits = np.iinfo(field.dtype)
            near = int(field[place]) + int(rng.integers(-2, 3))
            options = (
                0,
                1,
                2,
                7,
                8,
                100,
                32_000,
                limits.min,
                limits.max,
                limits.max // 2,
                near,
                int(rng.integers(1 << 12)),
            )
            value: Any = min(max(options[int(rng.integers(len(options)))], limits.min), limits.max)
        elif field.dtype.kind == "f":
            powers = float(rng.normal() * 10.0 ** rng.integers(-10, 11))
            options_f = (0.0, -1.0, np.nan, np.inf, -np.inf, 1e-30, 1e30, 1e15, 0.5, 1000.0, 352.0, 353.0, powers)
            value = options_f[int(rng.integers(len(options_f)))]
        else:
            value = rng.bytes(field.dtype.itemsize)
        field[place] = value
        notes.append(f"{name}[{place}] = {value!r}")
    return bytes(changed), "; ".join(notes)


def damage_lines(data: bytes, rng: Generator, *, end: bytes = b"") -> tuple[bytes, str]:
    """Replace, remove, double, move or rename lines of a text, or of the text at the beginning of a file.

    Args:
        data: The file.
        rng: Generator.
        end: Ends the text; without it, or where it is not found, all is text.
    """
    head, separator, rest = data.partition(end) if end else (data, b"", b"")
    lines, notes = head.split(b"\n"), []
    for _ in range(int(rng.integers(1, 4))):
        place = int(rng.integers(len(lines)))
        kind = str(rng.choice(("value", "value", "value", "remove", "double", "swap", "name", "long")))
        line = lines[place]
        if kind == "value":
            lines[place] = _other_value(line, rng)
        elif kind == "remove" and len(lines) > 1:
            del lines[place]
        elif kind == "double":
            lines.insert(int(rng.integers(len(lines))), line)
        elif kind == "swap":
            other = int(rng.integers(len(lines)))
            lines[place], lines[other] = lines[other], lines[place]
        elif kind == "name":
            lines[place] = line[: max(1, len(line) // 3)].swapcase() + b"x" + line[len(line) // 3 :]
        else:
            lines[place] = line + b" 1" * int(rng.choice((1, 100, 100_000)))
        notes.append(f"{kind} of {line[:30]!r}")
    return b"\n".join(lines) + separator + rest, "; ".join(notes)


WORDS = ("", "0", "-1", "1", "3", "4", "nan", "inf", "-inf", "1e300", "1e-300", "99999999999999999999", "300000", "x")
WORDS += ("LOCAL", "LIST", "../../etc/passwd", "/dev/zero", "/dev/stdin", "gzip", "raw", "double", "uchar", "block")
WORDS += (
    "none",
    "True",
    "big",
    "(1,0,0)",
    "(nan,0,0)",
    "(0,0,0)",
    "\0",
    "\u00e9",
    "%d",
    "65535",
    "65536",
    "2147483648",
)
"""What takes the place of a word in a line of text."""


def _other_value(line: bytes, rng: Generator) -> bytes:
    """Replace one word after the first separator of a line."""
    separator = next((one for one in (b":=", b": ", b"=", b",", b"\t") if one in line), b" ")
    name, found, value = line.partition(separator)
    words = value.split() or [b""]
    words[int(rng.integers(len(words)))] = str(rng.choice(np.array(WORDS, dtype=object))).encode()
    return name + found + (b" " if value.startswith(b" ") else b"") + b" ".join(words)
