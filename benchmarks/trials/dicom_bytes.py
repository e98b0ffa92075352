"""Damage of DICOM files: bytes flipped or cut, tags deleted, value representations and lengths changed."""

from __future__ import annotations

import random
import re

ELEMENT = re.compile(rb"[\x02\x08\x10\x18\x20\x28\x00-\x60]\x00..(?=[A-Z]{2})", re.DOTALL)
REPRESENTATIONS = (b"OB", b"OW", b"SQ", b"UN", b"DS", b"IS", b"US", b"SS", b"UI", b"CS", b"FD", b"AT", b"ZZ", b"\xff\0")


def mutant(content: bytes, rng: random.Random) -> bytes:
    """Damage the bytes of a file in one of several ways."""
    damage = rng.choice((flip, cut, delete, rename, lengthen, repeat))
    return damage(content, rng)


def flip(content: bytes, rng: random.Random) -> bytes:
    """Change a few bytes, mostly of the header."""
    changed = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 5, 50))):
        changed[rng.randrange(128, len(changed))] = rng.randrange(256)
    return bytes(changed)


def cut(content: bytes, rng: random.Random) -> bytes:
    """Cut the end off, or a part out."""
    start = rng.randrange(len(content))
    return content[:start] + (b"" if rng.random() < 0.5 else content[start + rng.randrange(1, 99) :])


def delete(content: bytes, rng: random.Random) -> bytes:
    """Delete an element with a short length."""
    at = _element(content, rng)
    return content[:at] + content[at + 8 + int.from_bytes(content[at + 6 : at + 8], "little") :]


def rename(content: bytes, rng: random.Random) -> bytes:
    """Change the value representation of an element."""
    at = _element(content, rng)
    return content[: at + 4] + rng.choice(REPRESENTATIONS) + content[at + 6 :]


def lengthen(content: bytes, rng: random.Random) -> bytes:
    """Change the length of an element."""
    at = _element(content, rng)
    length = rng.choice((0, 1, 3, 255, 65535, rng.randrange(65536)))
    return content[: at + 6] + length.to_bytes(2, "little") + content[at + 8 :]


def repeat(content: bytes, rng: random.Random) -> bytes:
    """Write a part of the file over another one."""
    size = rng.randrange(1, 64)
    source, target = rng.randrange(len(content) - size), rng.randrange(128, len(content) - size)
    return content[:target] + content[source : source + size] + content[target + size :]


def _element(content: bytes, rng: random.Random) -> int:
    """Return the start of an element with an explicit value representation."""
    starts = [match.start() for match in ELEMENT.finditer(content, 132)]
    return rng.choice(starts)
