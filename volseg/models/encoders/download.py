"""The official DINOv2 weights: fetched once, kept in a cache folder."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from volseg.errors import ConfigError, ModelFileError

BASE_URL = "https://dl.fbaipublicfiles.com/dinov2"
BLOCK_BYTES = 1 << 20
TIMEOUT_S = 30


def cache_folder() -> Path:
    """Where downloaded weights are kept: ``~/.cache/volseg``."""
    return Path.home() / ".cache" / "volseg"


def official_url(encoder: str) -> str:
    """The address of an encoder's official weights.

    Args:
        encoder: ``dinov2_s14 | b14 | l14 | g14``, each also with ``_reg``.

    Raises:
        ConfigError: The encoder is not one of the official models.

    Source: the table "Pretrained models" in the README of facebookresearch/dinov2.
    """
    if not encoder.startswith("dinov2_"):
        raise ConfigError(
            "there are no official weights for this encoder",
            found=f"model.encoder={encoder} model.weights=official",
            expected="one of the dinov2_ encoders",
            hint="set model.weights=random, or model.encoder=dinov2_s14",
        )
    folder = "dinov2_vit" + encoder.removeprefix("dinov2_").removesuffix("_reg")
    registers = "_reg4" if encoder.endswith("_reg") else ""
    return f"{BASE_URL}/{folder}/{folder}{registers}_pretrain.pth"


def official_file(encoder: str) -> Path:
    """The file with an encoder's official weights; downloaded when it is not in the cache folder yet.

    Raises:
        ConfigError: The encoder is not one of the official models.
        ModelFileError: It cannot be downloaded; the message says which file to put where.
    """
    url = official_url(encoder)
    path = cache_folder() / url.rsplit("/", 1)[1]
    if not path.exists():
        download(url, path)
    return path


def download(url: str, path: Path) -> None:
    """Fetch a file; it appears under its name only when it is whole.

    What has arrived is kept beside it as ``NAME.part``, and the next call goes on from there. Of several processes one
    fetches and the others wait for it. A progress bar is shown on a terminal.

    Args:
        url: Its address.
        path: Where to put it; the folder is made.

    Raises:
        ModelFileError: There is no network, no such file, no room, or the connection was cut.
    """
    part = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _one_at_a_time(path.with_name(path.name + ".lock")):
            if not path.exists():
                _fetch(url, part)
                part.replace(path)
    except (OSError, HTTPException, ValueError) as error:
        more = "; what has arrived is kept, and the same command goes on from there" if part.is_file() else ""
        raise ModelFileError(
            "the weights cannot be downloaded",
            file=path,
            found=f"{error or type(error).__name__}{more}",
            hint=f"download {url} on a machine with a network and put it at {path}, or set model.weights=FILE",
        ) from error


def _fetch(url: str, part: Path) -> None:
    """Bring ``part`` to its full size, from wherever it stands."""
    have = part.stat().st_size if part.exists() else 0
    try:
        response = urlopen(Request(url, headers={"Range": f"bytes={have}-"} if have else {}), timeout=TIMEOUT_S)
    except HTTPError as error:
        if not have or error.code != 416:  # 416: nothing follows what we have
            raise
        if error.headers["Content-Range"] != f"bytes */{have}":
            part.unlink()
            _fetch(url, part)
        return
    with response:
        if response.headers.get_content_type() == "text/html":
            raise OSError("the server answered with a web page")
        start, total = _extent(response, have)
        _receive(response, part, start, total)
    size = part.stat().st_size
    if total is not None and size != total:
        if size > total:
            part.unlink()
        raise OSError(f"{size} bytes arrived, the file has {total}")


def _extent(response: HTTPResponse, have: int) -> tuple[int, int | None]:
    """First byte of an answer, and the size of the whole file as far as the server says it."""
    if response.status == 206:
        span, _, total = (response.headers["Content-Range"] or "").removeprefix("bytes ").partition("/")
        if not span.startswith(f"{have}-"):
            raise OSError(f"the server sent bytes {span}, asked for those from {have} on")
        return have, None if total == "*" else int(total)
    length = response.headers["Content-Length"]  # a server that cannot resume sends everything
    return 0, None if length is None else int(length)


def _receive(response: HTTPResponse, part: Path, start: int, total: int | None) -> None:
    from tqdm import tqdm

    bar = tqdm(
        desc=part.stem,
        initial=start,
        total=total,
        unit="B",
        unit_scale=True,
        leave=False,
        disable=not sys.stderr.isatty(),
    )
    with bar, part.open("ab" if start else "wb") as file:
        while block := response.read(BLOCK_BYTES):
            file.write(block)
            bar.update(len(block))
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def _one_at_a_time(path: Path) -> Iterator[None]:
    """Hold a lock file, where the system and the file system have locks."""
    with path.open("w") as file:
        if sys.platform != "win32":
            import fcntl

            with suppress(OSError):
                fcntl.flock(file, fcntl.LOCK_EX)
        yield
