"""One writer per folder: two are refused, shards of one run are not, and the lock of a dead process is free."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from volseg.errors import OutputError
from volseg.io.locks import LOCK_NAME, folder_lock

HOLD = """
import os, sys, time
from pathlib import Path
from volseg.io.locks import folder_lock
folder, shared_by, child_s = sys.argv[1:]
with folder_lock(Path(folder), "training", shared_by=shared_by or None):
    if float(child_s) and os.fork() == 0:
        time.sleep(float(child_s))
        os._exit(0)
    print("held", flush=True)
    time.sleep(60)
"""


@contextmanager
def holder(folder: Path, shared_by: str = "", child_s: float = 0) -> Iterator[subprocess.Popen[str]]:
    """Run a process that holds the folder until the block ends; it may have a forked child that lives for a while."""
    command = [sys.executable, "-c", HOLD, str(folder), shared_by, str(child_s)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_second_writer_is_refused_and_told_who_holds_the_folder(tmp_path: Path) -> None:
    with holder(tmp_path) as process:
        with pytest.raises(OutputError, match=f"training in process {process.pid} on"), folder_lock(tmp_path, "mine"):
            pass
        process.send_signal(signal.SIGKILL)
        process.wait()
        with folder_lock(tmp_path, "mine"):
            assert f'"pid": {os.getpid()}' in (tmp_path / LOCK_NAME).read_text()
    assert list(tmp_path.iterdir()) == []


def test_the_children_of_a_killed_process_do_not_keep_its_folder(tmp_path: Path) -> None:
    """A forked worker inherits the lock and notices the death of its parent only later."""
    with holder(tmp_path, child_s=1) as process:
        process.kill()
        process.wait()
        start_s = time.monotonic()
        with folder_lock(tmp_path, "mine"):
            assert time.monotonic() - start_s > 0.5  # the child held it
    assert list(tmp_path.iterdir()) == []


def test_only_shards_of_the_same_run_share_a_folder(tmp_path: Path) -> None:
    with holder(tmp_path, "4 shards of a.safetensors"):
        with folder_lock(tmp_path, "mine", shared_by="4 shards of a.safetensors"):
            pass
        for other in ("4 shards of b.safetensors", "3 shards of a.safetensors", None):
            with pytest.raises(OutputError, match="another process"), folder_lock(tmp_path, "mine", shared_by=other):
                pass
        with folder_lock(tmp_path, "mine", shared_by="4 shards of a.safetensors"):
            pass


def test_the_folder_is_free_after_an_error(tmp_path: Path) -> None:
    for shared_by in (None, "shards"):
        with pytest.raises(ZeroDivisionError), folder_lock(tmp_path, "mine", shared_by=shared_by):
            raise ZeroDivisionError
        assert list(tmp_path.iterdir()) == []


def test_two_writers_in_one_process_are_two(tmp_path: Path) -> None:
    refused = pytest.raises(OutputError, match="first in process")
    with folder_lock(tmp_path, "first"), refused, folder_lock(tmp_path, "second"):
        pass


def test_without_locks_a_warning_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def unsupported(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("fcntl.flock", unsupported)
    with folder_lock(tmp_path, "first"), folder_lock(tmp_path, "second"):
        pass
    assert "no locks" in caplog.text
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot be written"), folder_lock(tmp_path / "none", "mine"):
        pass
