"""Damaged files read in worker processes with a limit of memory; a worker that dies is replaced."""

from __future__ import annotations

import logging
import multiprocessing
import re
import resource
import sys
import tempfile
import time
import warnings
from collections import defaultdict
from collections.abc import Sequence
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from shared.measure import memory_bytes
from shared.record import cores
from shared.text import say
from trials.damaged_files import DamagedFiles
from trials.mutations import Mutant

ADDRESS_SPACE = 2 << 30
"""What a worker may allocate above its memory at the beginning, bytes."""
MOST_BYTES = 256 << 20
"""A small file that takes more memory than this counts as failed."""
SLOW_S, HANG_S = 10.0, 180.0  # a process needs a minute to start where others take the cores


def mutants(work: Path, count: int, seed: int) -> dict[str, Any]:
    """Read damaged files.

    Args:
        work: Empty folder.
        count: Mutants.
        seed: Mutants have the seeds from ``seed * 1,000,000`` on.
    """
    first = seed * 1_000_000
    outcomes = _run_workers(work, range(first, first + count), min(cores(), 2))
    kinds: dict[str, Any] = {}
    for kind in sorted({one["kind"] for one in outcomes}):
        rows = [one for one in outcomes if one["kind"] == kind]
        counts = {name: sum(one["outcome"] == name for one in rows) for name in ("read", "refused")}
        kinds[kind] = {
            "mutants": len(rows),
            **counts,
            "other": len(rows) - sum(counts.values()),
            "longest_s": round(max(one["seconds"] for one in rows), 2),
            "peak_mb": round(max(one["bytes"] for one in rows) / 1e6),
        }
    others = [one for one in outcomes if one["outcome"] not in ("read", "refused")]
    return {
        "trials": len(outcomes),
        "failed": len(others),
        "kinds": kinds,
        "others by kind": _by_outcome(others),
        "problems": [f"--only {one['seed']}: {one['kind']}: {one['note']}: {one['outcome']}" for one in others[:20]],
    }


def one_mutant(seed: int) -> int:
    """Make a mutant, keep it, and read it with the traceback of an error."""
    files = DamagedFiles(Path(tempfile.mkdtemp(prefix="mutant_")))
    mutant = files.make(seed)
    print(f"{mutant.kind}: {mutant.note}\n{mutant.path}", flush=True)
    started = time.perf_counter()
    try:
        mutant.read()
        print("read")
    finally:
        print(f"{time.perf_counter() - started:.2f} s", file=sys.stderr)
    return 0


def _by_outcome(others: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the number and some seeds of each kind of failure."""
    groups: dict[str, list[int]] = defaultdict(list)
    for one in others:
        groups[f"{one['kind']}: {_without_details(one['outcome'])}"].append(one["seed"])
    return {name: {"mutants": len(seeds), "seeds": seeds[:5]} for name, seeds in sorted(groups.items())}


def _without_details(outcome: str) -> str:
    """Return the beginning of an outcome without numbers, names in quotes and what follows a file's absence."""
    short = outcome.splitlines()[0][:100]
    short = "error that names no file" if short.startswith("error that names no file") else short
    return re.sub(r"0x[0-9a-f]+|\d+", "N", re.sub(r"(['\"]).*?\1", "...", short))


def _run_workers(work: Path, seeds: range, number: int) -> list[dict[str, Any]]:
    """Share the seeds among processes; the mutant at which one dies or hangs is counted, and the rest goes on."""
    outcomes: list[dict[str, Any]] = []
    shares = [list(seeds[index::number]) for index in range(number)]
    workers = {_Worker(work, share): share for share in shares if share}
    while workers:
        ready = wait([worker.connection for worker in workers], timeout=1)
        for worker in list(workers):
            rest = workers[worker]
            try:
                while worker.connection in ready and worker.connection.poll():
                    outcomes.append(worker.connection.recv())
                    rest.remove(outcomes[-1]["seed"])
                    worker.changed = time.monotonic()
                    if len(outcomes) % 2000 == 0:
                        say(f"mutants: {len(outcomes)}")
                hangs = time.monotonic() - worker.changed > HANG_S
            except EOFError:
                hangs = None
            if hangs is False:
                continue
            del workers[worker]
            code = worker.end()
            if rest:
                outcome = "hangs" if hangs else f"the process died with code {code}"
                outcomes.append(_outcome(rest.pop(0), "?", "?", outcome))
            if rest:
                workers[_Worker(work, rest)] = rest
    return outcomes


class _Worker:
    """A process that reads mutants."""

    def __init__(self, work: Path, seeds: list[int]) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        folder = tempfile.mkdtemp(dir=work)
        self._process = context.Process(target=_work, args=(theirs, folder, list(seeds)), daemon=True)
        self._process.start()
        theirs.close()
        self.changed = time.monotonic()

    def end(self) -> int | None:
        """End the process and return its exit code."""
        self._process.join(1)
        self._process.kill()
        self._process.join()
        self.connection.close()
        return self._process.exitcode


def _work(connection: Connection, folder: str, seeds: list[int]) -> None:
    """Read the mutants of some seeds and send what became of each."""
    import torch

    torch.set_num_threads(1)
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    files = DamagedFiles(Path(folder) / "mutants")
    size = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + ADDRESS_SPACE, resource.RLIM_INFINITY))
    for seed in seeds:
        try:
            mutant = files.make(seed)
        except Exception as error:
            connection.send(_outcome(seed, "?", "?", f"cannot be made: {error!r}"[:300]))
            continue
        connection.send(outcome_of(seed, mutant))
    connection.close()


def outcome_of(seed: int, mutant: Mutant) -> dict[str, Any]:
    """Read a mutant in this process.

    Returns:
        ``seed``, ``kind``, ``note``, ``outcome`` (``read``, ``refused``, or what else happened), ``seconds`` and
        ``bytes`` of memory above those before.
    """
    from volseg.errors import VolsegError

    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    before, started = memory_bytes(), time.perf_counter()
    try:
        mutant.read()
        outcome = "read"
    except VolsegError as error:
        outcome = (
            "refused"
            if mutant.path.name in str(error) or str(mutant.path.parent) in str(error)
            else f"error that names no file: {error}"
        )
    except BaseException as error:
        outcome = f"{type(error).__name__}: {error}"[:300]
    seconds, taken = time.perf_counter() - started, max(0, _peak() - before)
    if seconds > SLOW_S:
        outcome = f"slow, then {outcome}"
    if taken > MOST_BYTES:
        outcome = f"{taken / 1e6:.0f} MB, then {outcome}"
    return _outcome(seed, mutant.kind, mutant.note, outcome, seconds, taken)


def _outcome(seed: int, kind: str, note: str, outcome: str, seconds: float = 0, taken: int = 0) -> dict[str, Any]:
    return {"seed": seed, "kind": kind, "note": note, "outcome": outcome, "seconds": seconds, "bytes": taken}


def _peak() -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
