"""Time and memory of a command with all its processes."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

POLL_S = 0.05


@dataclass(frozen=True)
class TreeCost:
    """Cost of a command.

    Attributes:
        seconds: Wall time.
        peak_bytes: Highest sum over its processes of the proportional set size, which counts shared pages once.
    """

    seconds: float
    peak_bytes: int


def cost_of_command(command: Sequence[str], environment: Mapping[str, str], log: Path) -> TreeCost:
    """Run a command and measure it.

    Args:
        command: The command.
        environment: Its variables.
        log: File of its output.

    Raises:
        SystemExit: The command failed.
    """
    started, peak = time.perf_counter(), 0
    with (
        log.open("wb") as output,
        subprocess.Popen(command, env=dict(environment), stdout=output, stderr=subprocess.STDOUT) as process,
    ):
        while process.poll() is None:
            peak = max(peak, sum(_proportional_bytes(pid) for pid in _tree(process.pid)))
            time.sleep(POLL_S)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed with code {process.returncode}; see {log}")
    return TreeCost(time.perf_counter() - started, peak)


def _tree(root: int) -> list[int]:
    """Return a process and its descendants."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                fields = (entry / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
            except OSError:  # it has ended
                continue
            parents.setdefault(int(fields[1]), []).append(int(entry.name))
    tree = [root]
    for pid in tree:
        tree += parents.get(pid, [])
    return tree


def _proportional_bytes(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:")), 0)
