"""Freed memory is kept or returned, each in a process of its own."""

from __future__ import annotations

import subprocess
import sys

import pytest

SCRIPT = """
import resource, sys
from volseg.heap import return_freed_memory, reuse_freed_memory
if sys.argv[1] != "default":
    reuse_freed_memory()
if sys.argv[1] == "return":
    b"1" * (1 << 25)
    assert return_freed_memory()

for _ in range(20):
    b"1" * (1 << 25)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    b"1" * (1 << 25)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc only")
def test_pages_are_touched_once() -> None:
    """Ten times 32 MB: pages that were given back fault again, pages that were kept do not."""
    faults = {}
    for way in ("reuse", "return", "default"):
        done = subprocess.run([sys.executable, "-c", SCRIPT, way], capture_output=True, text=True, check=True)
        faults[way] = int(done.stdout)
    if faults["default"] < 100:
        pytest.skip("the allocator here keeps large blocks anyway")
    assert faults["reuse"] < faults["default"] / 10
    assert faults["return"] > faults["default"] / 10
