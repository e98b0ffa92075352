"""Files and folders that appear whole or not at all."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from volseg.errors import OutputError
from volseg.io.atomic import TEMPORARY, atomic_file, atomic_folder, remove_stale, scratch_folder
from volseg.io.model_file import save_model


def everything(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_after_an_error_all_is_as_before(error: type[BaseException], tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a").write_text("old")
    (tmp_path / "file").write_text("old")

    def half_a_folder() -> None:
        with atomic_folder(tmp_path / "folder") as folder:
            (folder / "b").write_text("half")
            raise error

    def half_a_file() -> None:
        with atomic_file(tmp_path / "file") as file:
            file.write(b"half")
            raise error

    for half in (half_a_folder, half_a_file):
        with pytest.raises(error):
            half()
    assert everything(tmp_path) == {"folder/a": "old", "file": "old"}
    assert len(list(tmp_path.iterdir())) == 2


def test_a_folder_is_replaced_with_all_it_holds(tmp_path: Path) -> None:
    for name in ("a", "b"):
        with atomic_folder(tmp_path / "new" / "folder") as folder:
            (folder / name).write_text(name)
            assert not (tmp_path / "new" / "folder" / name).exists()
    assert everything(tmp_path) == {"new/folder/b": "b"}
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["folder"]


def test_the_former_folder_comes_back_when_the_new_one_cannot_take_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a").write_text("old")
    replace = Path.replace

    def fail(path: Path, target: Path) -> Path:
        if path.name.endswith(TEMPORARY):
            raise OSError(5, "Input/output error")
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OutputError, match="Input/output error"), atomic_folder(tmp_path / "folder"):
        pass
    assert everything(tmp_path) == {"folder/a": "old"}
    assert len(list(tmp_path.iterdir())) == 1


def test_the_longest_names_in_any_script(tmp_path: Path) -> None:
    for name in ("x" * 251, "日" * 83):
        with atomic_file(tmp_path / name) as file:
            file.write(b"1")
    assert len(everything(tmp_path)) == 2


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError, match="folder cannot be written"), atomic_folder(tmp_path / "file" / "folder"):
        pass
    assert everything(tmp_path) == {"file": "in the way"}


KILLED = """
import os, signal, sys
from pathlib import Path
from volseg.io.atomic import atomic_file, atomic_folder
path = Path(sys.argv[1])
if sys.argv[2] == "file":
    with atomic_file(path) as file:
        file.write(b"half of it, and longer than what comes later")
        file.flush()
        os.kill(os.getpid(), signal.SIGKILL)
with atomic_folder(path) as folder:
    (folder / "half").write_text("half")
    if sys.argv[2] == "replacing":  # after the former folder is put away, before the new one has its name
        os.replace(path, path.with_name(f".{path.name}.volseg-old"))
    os.kill(os.getpid(), signal.SIGKILL)
"""


def kill_while_writing(path: Path, kind: str) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED, str(path), kind], check=False)
    assert done.returncode == -signal.SIGKILL
    assert len(list(path.parent.glob(".*"))) == (2 if kind == "replacing" else 1)


def test_what_a_killed_process_left_is_taken_over(tmp_path: Path) -> None:
    kill_while_writing(tmp_path / "file", "file")
    with atomic_file(tmp_path / "file") as file:
        file.write(b"new")
    kill_while_writing(tmp_path / "folder", "folder")
    with atomic_folder(tmp_path / "folder") as folder:
        (folder / "a").write_text("new")
    assert everything(tmp_path) == {"file": "new", "folder/a": "new"}
    kill_while_writing(tmp_path / "folder", "replacing")
    with pytest.raises(ValueError, match="stop"), atomic_folder(tmp_path / "folder"):
        raise ValueError("stop")
    assert everything(tmp_path) == {"file": "new", "folder/a": "new"}
    assert len(list(tmp_path.iterdir())) == 2


def test_only_what_dead_processes_left_is_removed(tmp_path: Path) -> None:
    kill_while_writing(tmp_path / "b", "folder")
    (tmp_path / ".mine.tmp").write_text("a hidden file of somebody else")
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "a").write_text("old")
    with atomic_file(tmp_path / "a") as file, scratch_folder(tmp_path / "d") as folder:
        remove_stale(tmp_path)
        file.write(b"alive")
        (folder / "part").write_text("alive")
    assert everything(tmp_path) == {".mine.tmp": "a hidden file of somebody else", "a": "alive", "c/a": "old"}
    shutil.move(tmp_path / "c", tmp_path / ".c.volseg-old")
    remove_stale(tmp_path)
    assert everything(tmp_path) == {".mine.tmp": "a hidden file of somebody else", "a": "alive", "c/a": "old"}
    assert sorted(path.name for path in tmp_path.iterdir()) == [".mine.tmp", "a", "c"]


def test_a_new_folder_that_another_process_takes_for_a_stale_one_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between its making and its lock nobody can tell that its writer lives."""
    removals, open_path = 2, os.open

    def open_late(path: Path, *arguments: Any, **options: Any) -> int:
        nonlocal removals
        if removals and Path(path).is_dir():
            removals -= 1
            Path(path).rmdir()  # as `remove_stale` in the other process
        return open_path(path, *arguments, **options)

    monkeypatch.setattr(os, "open", open_late)
    with scratch_folder(tmp_path / "masks") as folder:
        assert folder.is_dir()
    assert removals == 0
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("locks", [True, False])
def test_writers_of_one_path_do_not_mix(locks: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not locks:

        def unsupported(*_: object) -> None:
            raise OSError(95, "Operation not supported")

        monkeypatch.setattr("fcntl.flock", unsupported)
    texts = [bytes([number]) * 100_000 for number in range(8)]

    def write(text: bytes) -> None:
        with atomic_file(tmp_path / "file") as file:
            for start in range(0, len(text), 10_000):
                file.write(text[start : start + 10_000])
                file.flush()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, texts))
    assert (tmp_path / "file").read_bytes() in texts
    assert len(list(tmp_path.iterdir())) == 1


def test_the_umask_decides_who_may_read(tmp_path: Path) -> None:
    former = os.umask(0o027)
    try:
        with atomic_file(tmp_path / "file") as file:
            file.write(b"1")
        save_model(tmp_path / "model", {"a": torch.zeros(1)}, {"config": {}, "plan": {}, "labels": {"background": 0}})
    finally:
        os.umask(former)
    assert {path.name: oct(path.stat().st_mode & 0o777) for path in tmp_path.iterdir()} == {
        "file": "0o640",
        "model": "0o640",
    }


def test_content_and_name_are_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file that gets the name is the one that is synchronised, before it gets it, and its folder afterwards."""
    events: list[tuple[str, int]] = []
    fsync, replace = os.fsync, Path.replace

    def record_fsync(descriptor: int) -> None:
        events.append(("fsync", os.fstat(descriptor).st_ino))
        fsync(descriptor)

    def record_replace(path: Path, target: Path) -> Path:
        events.append(("replace", path.stat().st_ino))
        return replace(path, target)

    monkeypatch.setattr("os.fsync", record_fsync)
    monkeypatch.setattr(Path, "replace", record_replace)
    save_model(tmp_path / "model", {"a": torch.zeros(1)}, {"config": {}, "plan": {}, "labels": {"background": 0}})
    file, folder = (tmp_path / "model").stat().st_ino, tmp_path.stat().st_ino
    assert events == [("fsync", file), ("replace", file), ("fsync", folder)]
    events.clear()
    with atomic_folder(tmp_path / "folder") as new:
        (new / "a").write_text("1")
    inner, outer = (tmp_path / "folder" / "a").stat().st_ino, (tmp_path / "folder").stat().st_ino
    assert events == [("fsync", inner), ("fsync", outer), ("replace", outer), ("fsync", folder)]
