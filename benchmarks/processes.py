"""Memory of processes, as Linux counts it. Plain Python, so that it also runs in other environments."""

from __future__ import annotations

import ctypes
import json
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

POLL_S = 0.02
SPARE_BYTES = 1_000_000_000
"""What must stay free on the machine: nothing may ever be swapped."""


def memory_bytes(process: int | str = "self") -> int:
    """Resident memory of a process now; 0 if it has ended."""
    return _status(process, "VmRSS")


def peak_bytes() -> int:
    """Highest resident memory of this process since :func:`reset_peak`."""
    return _status("self", "VmHWM")


def reset_peak() -> None:
    """Start the peak anew, after giving freed memory back, so that it does not hide what comes."""
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")


def run_watched(
    command: Sequence[str], limit_bytes: int, environment: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Run a process whose last line is JSON; stop it if it grows above a limit.

    Returns:
        What it printed and ``stopped`` False; or ``stopped`` True and the memory at which it was stopped.
    """
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    highest = 0
    while process.poll() is None:
        highest = max(highest, memory_bytes(process.pid))
        if highest > limit_bytes or _available_bytes() < SPARE_BYTES:
            process.kill()
            process.wait()
            return {"stopped": True, "process_bytes": highest}
        time.sleep(POLL_S)
    output = process.stdout.read() if process.stdout else ""
    if process.returncode:
        raise SystemExit(f"a child process failed with code {process.returncode}; see above")
    return {"stopped": False, **json.loads(output.splitlines()[-1])}


def _status(process: int | str, key: str) -> int:
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:")), 0)


def _available_bytes() -> int:
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
