"""Official weights: addresses; download, resume and failure, against a server on this machine."""

from __future__ import annotations

import re
import socket
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from volseg.config.encoders import CATALOGUE
from volseg.errors import ConfigError, ModelFileError
from volseg.models.encoders import download
from volseg.models.encoders.download import official_file, official_url

CONTENT = bytes(range(256)) * 40
NAME = "dinov2_vitb14_reg4_pretrain.pth"


class Handler(BaseHTTPRequestHandler):
    """Serves `CONTENT` as the server's ``mode`` says: ``plain``, ``ranges``, ``cut``, ``shifted`` or ``page``."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        server = self.server
        assert isinstance(server, WeightServer)
        span = self.headers["Range"]
        server.requests.append((self.path, span))
        if not self.path.endswith(f"/dinov2_vitb14/{NAME}"):
            self.send_error(404)
            return
        first = int(span.removeprefix("bytes=").rstrip("-")) if span and server.mode != "plain" else 0
        if first >= len(CONTENT):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(CONTENT)}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(206 if first else 200)
        if first:
            shown = first + (server.mode == "shifted")
            self.send_header("Content-Range", f"bytes {shown}-{len(CONTENT) - 1}/{len(CONTENT)}")
        self.send_header("Content-Type", "text/html" if server.mode == "page" else "application/octet-stream")
        self.send_header("Content-Length", str(len(CONTENT) - first))
        self.end_headers()
        self.wfile.write(CONTENT[first : 3000 if server.mode == "cut" else None])
        self.close_connection = True

    def log_message(self, *_args: object) -> None:
        pass


class WeightServer(ThreadingHTTPServer):
    mode = "ranges"

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests: list[tuple[str, str | None]] = []


def point_to(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace the official server by one on this machine."""
    entry = replace(CATALOGUE["dinov2_b14_reg"], url=f"http://127.0.0.1:{port}/dinov2_vitb14/{NAME}")
    monkeypatch.setitem(CATALOGUE, "dinov2_b14_reg", entry)


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[WeightServer]:
    """A server instead of the official one, and an empty home folder."""
    monkeypatch.setattr(download.Path, "home", lambda: tmp_path)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with WeightServer() as made:
        thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        point_to(made.server_port, monkeypatch)
        yield made
        made.shutdown()
        thread.join()


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / ".cache" / "volseg" / NAME


def part_of(target: Path, content: bytes) -> Path:
    """What an earlier, interrupted download left."""
    target.parent.mkdir(parents=True)
    part = target.with_name(NAME + ".part")
    part.write_bytes(content)
    return part


@pytest.mark.parametrize("size", "sblg")
def test_official_addresses(size: str) -> None:
    folder = f"https://dl.fbaipublicfiles.com/dinov2/dinov2_vit{size}14"
    assert official_url(f"dinov2_{size}14") == f"{folder}/dinov2_vit{size}14_pretrain.pth"
    assert official_url(f"dinov2_{size}14_reg") == f"{folder}/dinov2_vit{size}14_reg4_pretrain.pth"


@pytest.mark.parametrize("encoder", ["tiny", "identity"])
def test_only_official_models_have_official_weights(encoder: str) -> None:
    with pytest.raises(ConfigError, match="no official weights"):
        official_file(encoder)


@pytest.mark.parametrize("mode", ["ranges", "plain"])
def test_a_whole_download_happens_once(
    server: WeightServer, target: Path, mode: str, capfd: pytest.CaptureFixture[str]
) -> None:
    server.mode = mode
    assert official_file("dinov2_b14_reg") == target
    assert target.read_bytes() == CONTENT
    assert official_file("dinov2_b14_reg") == target
    assert server.requests == [(f"/dinov2_vitb14/{NAME}", None)]
    assert not target.with_name(NAME + ".part").exists()
    assert capfd.readouterr().err == ""  # no bar where there is no terminal


def test_a_terminal_shows_a_bar(
    server: WeightServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    official_file("dinov2_b14_reg")
    assert f"{NAME}:   0%" in capsys.readouterr().err


def test_a_cut_download_is_an_error_and_the_next_one_resumes(server: WeightServer, target: Path) -> None:
    server.mode = "cut"
    with pytest.raises(ModelFileError, match=r"3000 bytes arrived, the file has 10240") as error:
        official_file("dinov2_b14_reg")
    assert "the same command resumes the download" in str(error.value)
    assert not target.exists()
    server.mode = "ranges"
    official_file("dinov2_b14_reg")
    assert target.read_bytes() == CONTENT
    assert [span for _, span in server.requests] == [None, "bytes=3000-"]


def test_a_server_that_cannot_resume_starts_over(server: WeightServer, target: Path) -> None:
    part_of(target, b"something else")
    server.mode = "plain"
    official_file("dinov2_b14_reg")
    assert target.read_bytes() == CONTENT


@pytest.mark.parametrize(("left", "requests"), [(CONTENT, 1), (CONTENT + b"more", 2)])
def test_a_part_that_nothing_follows(server: WeightServer, target: Path, left: bytes, requests: int) -> None:
    """Whole already: it is taken. Longer than the file: it was of another one."""
    part_of(target, left)
    official_file("dinov2_b14_reg")
    assert target.read_bytes() == CONTENT
    assert len(server.requests) == requests


def test_other_bytes_than_asked_for_are_refused(server: WeightServer, target: Path) -> None:
    part = part_of(target, CONTENT[:100])
    server.mode = "shifted"
    with pytest.raises(ModelFileError, match="instead of those from 100 on"):
        official_file("dinov2_b14_reg")
    assert part.read_bytes() == CONTENT[:100]


def test_a_web_page_is_not_taken_for_weights(server: WeightServer, target: Path) -> None:
    server.mode = "page"
    with pytest.raises(ModelFileError, match="web page"):
        official_file("dinov2_b14_reg")
    assert not target.exists()


def test_two_at_a_time_fetch_once(server: WeightServer, target: Path) -> None:
    with ThreadPoolExecutor(2) as pool:
        paths = list(pool.map(official_file, ["dinov2_b14_reg"] * 2))
    assert paths == [target, target]
    assert target.read_bytes() == CONTENT
    assert len(server.requests) == 1


def test_without_a_network_it_says_what_to_put_where(
    target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download.Path, "home", lambda: tmp_path)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with socket.socket() as closed:  # a port without a listener
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}/dinov2_vitb14/{NAME}"
        point_to(closed.getsockname()[1], monkeypatch)
        with pytest.raises(ModelFileError, match="cannot be downloaded") as error:
            official_file("dinov2_b14_reg")
    assert f"download {url} on a machine" in str(error.value)
    assert f"save it as {target}, or set model.weights=FILE" in str(error.value)


def test_an_address_that_is_not_there(server: WeightServer, monkeypatch: pytest.MonkeyPatch) -> None:
    other = replace(CATALOGUE["dinov2_l14"], url=f"http://127.0.0.1:{server.server_port}/other.pth")
    monkeypatch.setitem(CATALOGUE, "dinov2_l14", other)
    with pytest.raises(ModelFileError, match="404"):
        official_file("dinov2_l14")


def test_a_folder_that_cannot_be_written(server: WeightServer, tmp_path: Path) -> None:
    (tmp_path / ".cache").write_text("a file in the way")
    with pytest.raises(ModelFileError, match=re.escape(str(tmp_path))):
        official_file("dinov2_b14_reg")
