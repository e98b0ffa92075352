"""Download of public data sets by name: the Medical Segmentation Decathlon, with MONAI's addresses and checksums."""

from __future__ import annotations

import logging
import socket
import sys
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path

from volseg.errors import ConfigError, DataError, OutputError
from volseg.io.atomic import scratch_folder
from volseg.io.description import FILE_NAME
from volseg.io.paths import exists, is_file

logger = logging.getLogger(__name__)

PREFIX = "msd:"
TIMEOUT_S = 30


def download_dataset(name: str, folder: Path) -> Path:
    """Download a task of the Medical Segmentation Decathlon, check its MD5 and extract it.

    An archive that is already there, such as one downloaded by hand, is checked and used, and kept.

    Args:
        name: ``msd:`` and the task, such as ``msd:Task04_Hippocampus``.
        folder: Where to put the folder of the data set; created if it is missing.

    Returns:
        The folder of the data set; if it is there already, nothing is downloaded.

    Raises:
        ConfigError: There is no such data set.
        DataError: There is no network, or the archive is damaged; the message says what to download by hand.
        OutputError: The folder cannot be written, or holds something else.
    """
    from monai.apps.datasets import DecathlonDataset

    tasks = DecathlonDataset.resource
    task = name.removeprefix(PREFIX)
    if not name.startswith(PREFIX) or task not in tasks:
        expected = ", ".join(f"{PREFIX}{one}" for one in sorted(tasks))
        raise ConfigError("there is no data set of this name", found=name, expected=expected)
    root = folder / task
    if is_file(root / FILE_NAME):
        logger.info("%s is already there", root)
        return root
    if exists(root):
        raise OutputError("the folder of the data set exists, but holds none", file=root, hint="remove it")
    archive = folder / f"{task}.tar"
    own = not exists(archive)
    _fetch(tasks[task], archive, DecathlonDataset.md5[task])
    _extract(archive, root)
    if own:
        archive.unlink()
    return root


def _fetch(url: str, archive: Path, md5: str) -> None:
    """Download an archive if it is not there, and check it."""
    from monai.apps import utils

    by_hand = f"download {url} on a machine with a network, save it as {archive}, and repeat the command"
    there = exists(archive)
    try:
        archive.parent.mkdir(parents=True, exist_ok=True)
        with _quiet(), _timeout():
            utils.download_url(url, archive, md5, "md5", progress=sys.stderr.isatty())
    except getattr(utils, "HashCheckError", RuntimeError) as error:  # RuntimeError: before MONAI 1.5
        problem, hint = "the archive is damaged", "remove it, and repeat the command" if there else by_hand
        raise DataError(problem, file=archive, found="another MD5", expected=md5, hint=hint) from error
    except FileExistsError as error:
        raise OutputError("the folder cannot be written", file=archive.parent, found=error) from error
    except (OSError, RuntimeError, HTTPException) as error:
        problem, expected = "the data set cannot be downloaded", f"MD5 {md5}"
        raise DataError(problem, file=archive, found=error, expected=expected, hint=by_hand) from error
    if not exists(archive):  # MONAI says nothing where writing is not permitted
        raise OutputError("the archive cannot be written", file=archive, hint="choose a folder with write permission")


def _extract(archive: Path, root: Path) -> None:
    """Extract an archive whose one folder becomes ``root``; members that would lie elsewhere are refused."""
    if not hasattr(tarfile, "data_filter"):
        hint = f"update Python (3.10.12, 3.11.4 or later), or extract it yourself to {root}"
        raise DataError("this version of Python cannot extract archives safely", file=archive, hint=hint)
    with scratch_folder(root) as folder:
        try:
            with tarfile.open(archive) as tar:
                tar.extractall(folder, filter="data")
        except tarfile.TarError as error:
            hint = "remove it, and repeat the command"
            raise DataError("the archive cannot be extracted", file=archive, found=error, hint=hint) from error
        except OSError as error:
            raise OutputError("the archive cannot be extracted", file=root, found=error) from error
        if not is_file(folder / root.name / FILE_NAME):
            raise DataError("the archive holds no data set", file=archive, expected=f"{root.name}/{FILE_NAME}")
        (folder / root.name).replace(root)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence MONAI's messages, which go to stdout; errors are raised, too."""
    theirs = logging.getLogger("monai.apps")
    level = theirs.level
    theirs.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        theirs.setLevel(level)


@contextmanager
def _timeout() -> Iterator[None]:
    """Let connections end that receive nothing; MONAI sets no limit."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT_S)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
