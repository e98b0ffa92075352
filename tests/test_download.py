"""Download of data sets by name, from archives on this disk in place of the network."""

from __future__ import annotations

import hashlib
import io
import shutil
import tarfile
from pathlib import Path

import pytest

from volseg import api
from volseg.cli.main import main
from volseg.errors import ConfigError, DataError, OutputError

TASK = "Task04_Hippocampus"
CONTENT = {f"{TASK}/dataset.json": b"{}", f"{TASK}/imagesTr/a.nii.gz": b"voxels"}


def archive(path: Path, content: dict[str, bytes], *extra: tarfile.TarInfo) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in content.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
        for member in extra:
            tar.addfile(member)
    return path


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch):
    """Offer a file at the address of the task."""
    from monai.apps import DecathlonDataset

    def offer(file: Path) -> None:
        monkeypatch.setitem(DecathlonDataset.resource, TASK, file.as_uri())
        if file.exists():
            monkeypatch.setitem(DecathlonDataset.md5, TASK, hashlib.md5(file.read_bytes()).hexdigest())

    return offer


def test_the_folder_of_the_data_set_is_the_result(tmp_path: Path, serve, capsys: pytest.CaptureFixture[str]) -> None:
    serve(archive(tmp_path / "server/x.tar", CONTENT))
    assert main(["download", f"msd:{TASK}", str(tmp_path / "data")]) == 0
    root = tmp_path / "data" / TASK
    assert capsys.readouterr().out == f"{root}\n"
    assert (root / "imagesTr/a.nii.gz").read_bytes() == b"voxels"
    assert [path.name for path in root.parent.iterdir()] == [TASK]
    serve(tmp_path / "gone.tar")
    assert api.download(f"msd:{TASK}", tmp_path / "data") == root  # nothing is downloaded again


def test_without_a_network(tmp_path: Path, serve, capsys: pytest.CaptureFixture[str]) -> None:
    from monai.apps import DecathlonDataset

    serve(tmp_path / "gone.tar")
    assert main(["download", f"msd:{TASK}", str(tmp_path)]) == 2
    output = capsys.readouterr()
    assert output.out == ""
    for text in (
        "cannot be downloaded",
        (tmp_path / "gone.tar").as_uri(),
        DecathlonDataset.md5[TASK],
        f"save it as {tmp_path / TASK}.tar",
    ):
        assert text in output.err


def test_an_archive_that_was_downloaded_by_hand(tmp_path: Path, serve) -> None:
    from monai.apps import DecathlonDataset

    own = archive(tmp_path / f"{TASK}.tar", CONTENT)
    serve(own)
    DecathlonDataset.resource[TASK] = "http://127.0.0.1:9/never.tar"
    assert api.download(f"msd:{TASK}", tmp_path) == tmp_path / TASK
    assert own.exists()


def test_another_checksum(tmp_path: Path, serve) -> None:
    server = archive(tmp_path / "server/x.tar", CONTENT)
    serve(server)
    server.write_bytes(server.read_bytes() + b"more")
    with pytest.raises(DataError, match=r"is damaged(.|\n)*another MD5(.|\n)*save it as"):
        api.download(f"msd:{TASK}", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["server"]
    (tmp_path / f"{TASK}.tar").write_bytes(b"cut")
    with pytest.raises(DataError, match=r"damaged(.|\n)*another MD5(.|\n)*remove it"):
        api.download(f"msd:{TASK}", tmp_path)


def member(name: str, kind: bytes = tarfile.REGTYPE, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def test_members_that_would_lie_elsewhere(tmp_path: Path, serve) -> None:
    for number, bad in enumerate((member("../evil"), member(f"{TASK}/link", tarfile.SYMTYPE, "/etc/passwd"))):
        serve(archive(tmp_path / f"server/{number}.tar", CONTENT, bad))
        with pytest.raises(DataError, match="cannot be extracted"):
            api.download(f"msd:{TASK}", tmp_path / "data")
        (tmp_path / f"data/{TASK}.tar").unlink()
        assert list((tmp_path / "data").iterdir()) == []
    assert not (tmp_path / "evil").exists()


def test_archives_of_another_content(tmp_path: Path, serve, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "text.tar").write_text("no archive")
    serve(tmp_path / "text.tar")
    with pytest.raises(DataError, match="cannot be extracted"):
        api.download(f"msd:{TASK}", tmp_path / "a")
    serve(archive(tmp_path / "other.tar", {"x/y": b""}))
    with pytest.raises(DataError, match=f"holds no data set(.|\n)*{TASK}/dataset.json"):
        api.download(f"msd:{TASK}", tmp_path / "b")
    serve(archive(tmp_path / "clash.tar", {f"{TASK}/a": b"", f"{TASK}/a/b": b""}))
    with pytest.raises(OutputError, match="cannot be extracted"):
        api.download(f"msd:{TASK}", tmp_path / "c")
    monkeypatch.delattr(tarfile, "data_filter")
    with pytest.raises(DataError, match="update Python"):
        api.download(f"msd:{TASK}", tmp_path / "c")


def test_wrong_names_and_folders(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"msd:Task04_Hippocampus(.|\n)*msd:Task10_Colon"):
        api.download("msd:Task4_Hippocampus", tmp_path)
    with pytest.raises(ConfigError, match="no data set of this name"):
        api.download("x", tmp_path)
    (tmp_path / TASK).mkdir()
    with pytest.raises(OutputError, match="holds none"):
        api.download(f"msd:{TASK}", tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot be written"):
        api.download(f"msd:{TASK}", tmp_path / "file")


def test_a_folder_without_write_permission(tmp_path: Path, serve, monkeypatch: pytest.MonkeyPatch) -> None:
    serve(archive(tmp_path / "server/x.tar", CONTENT))

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(shutil, "move", refuse)  # as MONAI meets it
    with pytest.raises(OutputError, match="archive cannot be written"):
        api.download(f"msd:{TASK}", tmp_path)
