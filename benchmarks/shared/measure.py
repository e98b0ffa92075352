"""Time and memory of calls, and functions in processes of their own. Plain Python: nnU-Net's environment runs it too.

Memory is counted as Linux does, in ``/proc``. A function that is measured in a process of its own returns a dictionary
of plain values::

    run_function(measure, {"tokens": 1370})                    # python shared/measure.py MODULE:measure JSON
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

BENCHMARKS = Path(__file__).resolve().parents[1]
POLL_S = 0.02
SPARE_BYTES = 1_000_000_000
"""Memory that stays free on the machine, so that nothing is swapped."""


@dataclass(frozen=True)
class Cost:
    """Cost of a call.

    Attributes:
        seconds: Wall time.
        before_bytes: Resident memory before the call.
        peak_bytes: Highest resident memory during the call.
    """

    seconds: float
    before_bytes: int
    peak_bytes: int

    @property
    def above_bytes(self) -> int:
        """Memory that the call added at its peak."""
        return self.peak_bytes - self.before_bytes


def timed(function: Callable[[], Any], repeats: int = 1) -> tuple[float, Any]:
    """Return the median wall time of some calls, and the last result."""
    times, result = [], None
    for _ in range(repeats):
        started = time.perf_counter()
        result = function()
        times.append(time.perf_counter() - started)
    return statistics.median(times), result


def cost_of(function: Callable[[], Any]) -> tuple[Cost, Any]:
    """Return the cost of a call, and its result."""
    before = reset_peak()
    seconds, result = timed(function)
    return Cost(seconds, before, _status("self", "VmHWM")), result


def memory_bytes(process: int | str = "self") -> int:
    """Return the resident memory of a process; 0 if it has ended."""
    return _status(process, "VmRSS")


def reset_peak() -> int:
    """Give freed memory back to the system, restart the peak of this process and return its resident memory."""
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return memory_bytes()


def run_function(
    function: Callable[..., Mapping[str, Any]],
    settings: Mapping[str, Any],
    *,
    python: str = sys.executable,
    source: Path | None = None,
    environment: Mapping[str, str] | None = None,
    limit_bytes: int | None = None,
    limit_s: float | None = None,
) -> dict[str, Any]:
    """Call a function of a module in a new process.

    Args:
        function: Function of a module (not of ``__main__``); its result can be written as JSON.
        settings: Its keyword arguments, plain values.
        python: Interpreter.
        source: Checkout from which ``volseg`` is imported; by default the one that is installed.
        environment: Variables of the process; those of this process by default.
        limit_bytes: The process is stopped when it grows above this.
        limit_s: The process and those that it has started are stopped after this time.

    Returns:
        The function's result. With a limit, also ``stopped``; where it is true, only ``process_bytes``, the memory at
        which the process was stopped.

    Raises:
        SystemExit: The process failed.
        TimeoutError: It took longer than ``limit_s``.
    """
    # By its path, not by -m, which would put the working folder and its volseg before the source.
    command = [python, __file__, f"{function.__module__}:{function.__qualname__}", json.dumps(settings)]
    variables = dict(os.environ if environment is None else environment)
    paths = [str(BENCHMARKS), str(source) if source else "", variables.get("PYTHONPATH", "")]
    variables["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    group = limit_s is not None  # a group of its own, which is stopped as a whole
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env=variables, start_new_session=group
    ) as process:
        if limit_bytes is not None and (highest := _stop_above(process, limit_bytes)):
            return {"stopped": True, "process_bytes": highest}
        try:
            output, _ = process.communicate(timeout=limit_s)
        except BaseException as error:
            if group:
                os.killpg(process.pid, signal.SIGKILL)
            if isinstance(error, subprocess.TimeoutExpired):
                raise TimeoutError(f"stopped after {limit_s:g} s") from error
            raise
    if process.returncode:
        raise SystemExit(f"{' '.join(command[2:])} failed with code {process.returncode}; see above")
    result: dict[str, Any] = json.loads(output.splitlines()[-1])
    return result if limit_bytes is None else {"stopped": False, **result}


def _stop_above(process: subprocess.Popen[str], limit_bytes: int) -> int:
    """Wait for the end of a process; if it grows above the limit, stop it and return its memory, otherwise 0."""
    highest = 0
    while process.poll() is None:
        highest = max(highest, memory_bytes(process.pid))
        if highest > limit_bytes or _available_bytes() < SPARE_BYTES:
            process.kill()
            process.wait()
            return highest
        time.sleep(POLL_S)
    return 0


def _status(process: int | str, key: str) -> int:
    try:
        lines = Path(f"/proc/{process}/status").read_text(encoding="ascii").splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:")), 0)


def _available_bytes() -> int:
    lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))


if __name__ == "__main__":
    print(json.dumps(resolve_name(sys.argv[1])(**json.loads(sys.argv[2]))))
