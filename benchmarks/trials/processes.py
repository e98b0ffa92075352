"""Commands in processes of their own: started, killed at a chosen moment, and what they leave behind."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import volseg

SOURCE = Path(volseg.__file__).resolve().parents[1]
"""The checkout that is measured: the one from which this process imports volseg."""
POLL_S = 0.001
GRACE_S = 2.0
"""Children may live this long after their parent was killed."""


@dataclass(frozen=True)
class Life:
    """One process from its start to its end.

    Attributes:
        code: Exit code; ``None`` if it was killed.
        seconds: Wall time.
        text: Its stdout and stderr.
        children: Children that were still alive `GRACE_S` after a kill.
    """

    code: int | None
    seconds: float
    text: str
    children: int = 0

    @property
    def refused(self) -> bool:
        """Whether it ended by itself with another exit code than 0."""
        return self.code not in (None, 0)

    @property
    def last_lines(self) -> str:
        """The end of its output."""
        return self.text.strip()[-600:]


class Command:
    """A running ``volseg`` command in a session of its own.

    Args:
        arguments: The command and its arguments.
        folder: Working folder; the output goes to a file there.
        prepare: Called in the child before the command starts.
    """

    def __init__(self, arguments: Sequence[object], folder: Path, prepare: Callable[[], None] | None = None) -> None:
        self._started = time.perf_counter()
        self._log = folder / f"log_{time.monotonic_ns()}.txt"
        paths = filter(None, [str(SOURCE), os.environ.get("PYTHONPATH", "")])
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "volseg", *map(str, arguments)],
                cwd=folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=prepare,
            )

    @property
    def text(self) -> str:
        """What it has printed so far."""
        return self._log.read_text(encoding="utf-8", errors="replace")

    def wait(self, limit_s: float = 600) -> Life:
        """Wait for the end; a process that takes longer is killed and counts as failed with code -9."""
        try:
            code = self._process.wait(limit_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        return self._life(code)

    def kill_at(self, moment: Callable[[], bool], delay_s: float = 0, limit_s: float = 300) -> Life:
        """Kill the process, not its children, some time after a moment; it may end before.

        Args:
            moment: Asked every millisecond whether the moment has come.
            delay_s: Time between the moment and the kill.
            limit_s: The process is killed after this time anyway.
        """
        while self._process.poll() is None and not _has_come(moment):
            if time.perf_counter() - self._started > limit_s:
                break
            time.sleep(POLL_S)
        try:
            return self._life(self._process.wait(delay_s))
        except subprocess.TimeoutExpired:
            return self.kill()

    def kill(self) -> Life:
        """Kill the process now."""
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()
        return self._life(None)

    def _life(self, code: int | None) -> Life:
        seconds = time.perf_counter() - self._started
        children = _end_session(self._process.pid)
        text = self.text
        self._log.unlink()
        return Life(code, seconds, text, children)


def _has_come(moment: Callable[[], bool]) -> bool:
    """Ask for a moment; a folder may vanish while it is listed."""
    try:
        return moment()
    except FileNotFoundError:
        return False


def _end_session(session: int) -> int:
    """Wait until a session has no process, kill those that stay after `GRACE_S` and return their number."""
    until = time.perf_counter() + GRACE_S
    while members := _members(session):
        if time.perf_counter() > until:
            for process in members:
                os.kill(process, signal.SIGKILL)
            return len(members)
        time.sleep(0.02)
    return 0


def _members(session: int) -> list[int]:
    """Return the processes of a session that have not ended."""
    members = []
    for entry in Path("/proc").iterdir():
        try:
            state = (
                (entry / "stat").read_text(encoding="utf-8").rpartition(")")[2].split() if entry.name.isdigit() else []
            )
        except OSError:
            continue
        if state and int(state[3]) == session and state[0] not in "ZX":
            members.append(int(entry.name))
    return members


def files_below(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of every file below a folder by its relative path, hidden files included."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def names_below(folder: Path) -> set[str]:
    """Return the relative paths of all files and folders below a folder, hidden ones too; some may vanish meanwhile."""
    parts = ((Path(parent), name) for parent, folders, files in os.walk(folder) for name in (*folders, *files))
    return {str((parent / name).relative_to(folder)) for parent, name in parts}
