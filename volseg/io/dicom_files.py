"""The files of a DICOM series: in a folder, with its sub-folders, or in a zip, which is read without unpacking it."""

from __future__ import annotations

import io
import mmap
import os
import stat
import zipfile
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO, cast

from volseg.config.mask_formats import DICOM_ENDINGS
from volseg.config.sizes import format_size
from volseg.errors import DataError, VolsegError
from volseg.io.paths import is_file, is_folder
from volseg.io.stored import HINT

ZIP = ".zip"
SUFFIXES = (".dcm", ".dic", ".ima")
"""Endings of DICOM files, which often have none, or the last number of a UID."""
ARCHIVES = (ZIP, ".7z", ".rar", ".tar", ".tgz", ".tar.gz", ".tbz2", ".tar.bz2", ".txz", ".tar.xz", ".gz", ".bz2", ".xz")
MAGIC_OFFSET, MAGIC = 128, b"DICM"
START_BYTES = MAGIC_OFFSET + len(MAGIC)
FIRST_GROUPS = (b"\x08\x00", b"\x02\x00")  # of files without the preamble, which old software writes
INDEX_NAMES = ("dicomdir",)
SKIPPED_FOLDERS = ("__MACOSX",)
MOST_FILES = 100_000
PEEKED_FILES = 1000
"""Files that are opened before a folder or zip without a DICOM file counts as one without a series."""
LARGEST_ZIP_BYTES = 16 << 30  # unpacked
LARGEST_ENTRY_BYTES = 4 << 30  # read into memory; the pixels of an uncompressed DICOM file are at most as many
LARGEST_ZIP_RATIO = 200  # scans shrink to a third
ZIP_FREE_BYTES = 64 << 20  # below this size unpacked, the ratio is not checked: generated scans may be nearly constant


@dataclass(frozen=True)
class Member:
    """A file of a folder, or an entry of an open zip.

    Attributes:
        path: The file, or the zip.
        entry: The entry of the zip.
        archive: The open zip.
    """

    path: Path
    entry: zipfile.ZipInfo | None = None
    archive: zipfile.ZipFile | None = None

    @property
    def name(self) -> str:
        """Where the file is, for messages."""
        return str(self.path) if self.entry is None else f"{self.path}: {self.entry.filename}"

    @property
    def short_name(self) -> str:
        """The name of the file alone."""
        return self.path.name if self.entry is None else PurePosixPath(self.entry.filename).name

    @contextmanager
    def open(self) -> Iterator[BinaryIO]:
        """Open the file; whatever goes wrong, then or in the block, becomes a DataError that names it.

        pydicom has no common class of errors: damaged files raise nearly every kind.

        Yields:
            Its content as a stream, of which a read returns at most what is there.
        """
        with named_errors(self.name), ExitStack() as stack:
            if self.archive is not None and self.entry is not None:
                yield io.BytesIO(self.archive.read(self.entry))
                return
            file = stack.enter_context(self.path.open("rb"))
            if not os.fstat(file.fileno()).st_size:
                raise DataError("the file is empty (0 bytes)", file=self.name, hint=HINT)
            yield cast(BinaryIO, stack.enter_context(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)))

    def start(self) -> bytes:
        """Return the first bytes, in which the format shows."""
        with named_errors(self.name):
            if self.archive is not None and self.entry is not None:
                with self.archive.open(self.entry) as content:
                    return content.read(START_BYTES)
            with self.path.open("rb") as file:
                return file.read(START_BYTES)


@contextmanager
def named_errors(file: str | Path) -> Iterator[None]:
    """Turn any error of the block into a DataError that names the file."""
    try:
        yield
    except VolsegError:
        raise
    except PermissionError as error:
        raise DataError("reading the file is not permitted", file=file, hint="give read permission") from error
    except MemoryError as error:
        hint = "close other programs, or crop the image"
        raise DataError("there is too little memory to read the file", file=file, hint=hint) from error
    except Exception as error:
        found = f"{type(error).__name__}: {str(error)[:200]}"
        raise DataError("the file is truncated, corrupt or not DICOM", file=file, found=found, hint=HINT) from error


@contextmanager
def open_members(path: Path, *, recursive: bool = True) -> Iterator[list[Member]]:
    """List the regular files of a folder or zip, without hidden ones, sorted by name.

    Args:
        path: A folder or a zip.
        recursive: Include the sub-folders of a folder.

    Yields:
        The files, which can be opened within the block.

    Raises:
        DataError: They cannot be listed, there are too many, or the zip is not safe to read.
    """
    if is_folder(path):
        yield [Member(file) for file in _files(path, recursive)]
        return
    with ExitStack() as stack:
        with named_errors(path):
            archive = stack.enter_context(zipfile.ZipFile(path))
            members = [Member(path, entry, archive) for entry in _entries(archive, path)]
        yield members


def is_dicom(member: Member) -> bool:
    """Return whether a file is DICOM, by its name or its first bytes.

    Raises:
        DataError: It cannot be read.
    """
    if member.short_name.lower().endswith(SUFFIXES):
        return True
    start = member.start()
    return start[MAGIC_OFFSET:] == MAGIC or start[:2] in FIRST_GROUPS


def is_archive(name: str) -> bool:
    """Return whether a file is named as an archive, or as another compressed file than a scan."""
    return name.lower().endswith(ARCHIVES) and not name.lower().endswith(".nii.gz")


def is_damaged_copy(member: Member) -> bool:
    """Return whether a file is empty and may have been a slice: its name has no ending, or only a number."""
    size = member.entry.file_size if member.entry is not None else member.path.stat().st_size
    return size == 0 and not Path(member.short_name).suffix[1:].isalpha()


def is_index(member: Member) -> bool:
    """Return whether a file is the table of contents of a DICOM medium."""
    return member.short_name.lower() in INDEX_NAMES


def holds_dicom(path: Path, *, recursive: bool = True) -> bool:
    """Return whether a folder or zip holds DICOM files; at most the first thousand files are opened.

    Masks that volseg wrote do not count. A zip that cannot be read does, so that reading it names what is wrong.
    """
    try:
        with open_members(path, recursive=recursive) as members:
            others = (member for member in members[:PEEKED_FILES] if not (is_index(member) or _is_mask(member)))
            return any(map(shows_dicom, others))
    except DataError:
        return not is_folder(path)


def shows_dicom(member: Member) -> bool:
    """Return whether a file shows that it is DICOM; one that cannot be read does not, in a zip it does."""
    try:
        return is_dicom(member)
    except DataError:
        return member.entry is not None  # reading the zip names what is wrong


def _is_mask(member: Member) -> bool:
    return member.short_name.lower().endswith(DICOM_ENDINGS)


def _files(folder: Path, recursive: bool) -> list[Path]:
    """Return the regular files of a folder."""

    def fail(error: OSError) -> None:
        raise DataError("the folder cannot be read", file=error.filename or folder, found=error.strerror)

    files: list[Path] = []
    for parent, folders, names in os.walk(folder, onerror=fail):
        folders[:] = sorted(name for name in folders if _is_usual(name)) if recursive else []
        paths = (Path(parent, name) for name in names if _is_usual(name))
        files += sorted(path for path in paths if is_file(path))
        if len(files) > MOST_FILES:
            found, hint = f"more than {MOST_FILES}", "give the folder of one series"
            raise DataError("the folder holds too many files for one series", file=folder, found=found, hint=hint)
    return files


def _is_usual(name: str) -> bool:
    return not name.startswith(".") and name not in SKIPPED_FOLDERS


def _entries(archive: zipfile.ZipFile, path: Path) -> list[zipfile.ZipInfo]:
    """Return the files of a zip once all are safe to read.

    Nothing is unpacked, so names could do no harm; an archive with such names is no export of scans all the same.
    """
    entries = archive.infolist()
    if len(entries) > MOST_FILES:
        found, expected = f"{len(entries)} entries", f"at most {MOST_FILES}"
        raise DataError("the zip holds too many files for one series", file=path, found=found, expected=expected)
    doubled = next((name for name, number in Counter(entry.filename for entry in entries).items() if number > 1), None)
    if doubled is not None:
        hint = "pack the files again, each with a name of its own"
        raise DataError("the zip holds several files of one name", file=path, found=repr(doubled)[:200], hint=hint)
    for entry in entries:
        problem = _problem(entry)
        if problem is not None:
            hint = "unpack it with a program that you trust, and give the folder"
            raise DataError(f"the zip holds {problem}", file=path, found=repr(entry.filename)[:200], hint=hint)
    unpacked, packed = sum(entry.file_size for entry in entries), path.stat().st_size
    if unpacked > LARGEST_ZIP_BYTES or unpacked > max(ZIP_FREE_BYTES, packed * LARGEST_ZIP_RATIO):
        found = f"{format_size(unpacked)} in {format_size(packed)}"
        expected = f"at most {format_size(LARGEST_ZIP_BYTES)}, and {LARGEST_ZIP_RATIO} times the size of the zip"
        raise DataError("the zip would unpack to too much", file=path, found=found, expected=expected)
    usual = (entry for entry in entries if all(map(_is_usual, PurePosixPath(entry.filename).parts)))
    return sorted((entry for entry in usual if not entry.is_dir()), key=lambda entry: entry.filename)


def _problem(entry: zipfile.ZipInfo) -> str | None:
    """Return why an entry of a zip is refused."""
    name = entry.filename.replace("\\", "/")
    if name.startswith("/") or ":" in name.split("/")[0] or ".." in name.split("/"):
        return "a name that leads out of its folder"
    if stat.S_ISLNK(entry.external_attr >> 16):
        return "a link"
    if entry.flag_bits & 1:
        return "encrypted files"
    if entry.file_size > LARGEST_ENTRY_BYTES:
        return f"a file of more than {format_size(LARGEST_ENTRY_BYTES)}"
    return None
