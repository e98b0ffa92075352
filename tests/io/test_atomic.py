"""Files and folders that appear whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from volseg.errors import OutputError
from volseg.io.atomic import atomic_file, atomic_folder


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
        if path.name.endswith(".tmp"):
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
