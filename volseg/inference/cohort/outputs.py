"""Names, checks and writing of the output files of a case."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from volseg.errors import OutputError
from volseg.geometry.volume import Mask
from volseg.io.atomic import atomic_folder
from volseg.io.cases import Case
from volseg.io.model_file import file_sha256
from volseg.io.volumes import OUTPUT_SUFFIX, write_mask

LONGEST_NAME = 200
"""Most bytes of a class name in a file name; file systems allow 255 with the suffix."""


@dataclass(frozen=True, kw_only=True)
class Outputs:
    """The files that are written for each case.

    Attributes:
        folder: Output folder.
        split_classes: Write ``<case>/<class>.nii.gz``, one binary mask per class, instead of ``<case>.nii.gz``. Not
            both: evaluation would find two masks of a case in one folder.
        probabilities: Write ``<case>_probabilities.npy``, all classes.
        uncertainty: Write ``<case>_uncertainty.nii.gz``.
    """

    folder: Path
    split_classes: bool = False
    probabilities: bool = False
    uncertainty: bool = False

    def mask(self, case: str) -> Path:
        """Return the path of the label map, or the folder of the class files."""
        return self.folder / (case if self.split_classes else f"{case}{OUTPUT_SUFFIX}")

    def probabilities_of(self, case: str) -> Path | None:
        """Return the path of the probabilities, or ``None`` if they are not requested."""
        return self.folder / f"{case}_probabilities.npy" if self.probabilities else None

    def uncertainty_of(self, case: str) -> Path | None:
        """Return the path of the uncertainty map, or ``None`` if it is not requested."""
        return self.folder / f"{case}_uncertainty{OUTPUT_SUFFIX}" if self.uncertainty else None

    def all_of(self, case: str) -> list[Path]:
        """Return all paths that are requested for a case, the mask first."""
        extras = (self.probabilities_of(case), self.uncertainty_of(case))
        return [self.mask(case), *(path for path in extras if path is not None)]

    def existing(self, case: str) -> list[Path]:
        """Return the requested paths that exist, the mask first."""
        return [path for path in self.all_of(case) if path.exists()]

    def check(self, case: Case) -> None:
        """Check that writing a case replaces no other data.

        Raises:
            OutputError: An output would replace the case's own scan, or a folder that holds other files.
        """
        for path in self.all_of(case.id):
            for image in case.images:
                if path.resolve() in (image.resolve(), *image.resolve().parents):
                    raise OutputError("the mask would replace its own scan", file=path, hint="choose another folder")
        mask = self.mask(case.id)
        other_files = [file.name for file in mask.iterdir() if not _is_class_file(file)] if mask.is_dir() else []
        if other_files or (mask.exists() and mask.is_dir() != self.split_classes):
            raise OutputError(
                "the path of the mask is taken by something else, which is not replaced",
                file=mask,
                found=f"a folder with {', '.join(sorted(other_files)[:5])}" if mask.is_dir() else "a file",
                hint="choose another output folder",
            )

    def write_mask(self, case: Case, mask: Mask, labels: Mapping[str, int]) -> None:
        """Write the mask atomically.

        Args:
            case: The case.
            mask: The mask, on the scan's grid.
            labels: File value of every class by name, background included.

        Raises:
            OutputError: The mask cannot be written.
        """
        path = self.mask(case.id)
        first = case.images[0]
        source = first if first.is_file() else None
        if not self.split_classes:
            write_mask(path, mask, source=source)
            return
        with atomic_folder(path) as folder:
            for name, value in labels.items():
                if value != 0:
                    binary = Mask((mask.labels == value).view(np.uint8), mask.grid)
                    write_mask(folder / f"{name}{OUTPUT_SUFFIX}", binary, source=source)


def check_class_names(labels: Mapping[str, int]) -> None:
    """Check that class names are valid file names, before anything is predicted.

    Raises:
        OutputError: A class name is not a valid file name.
    """
    invalid = [
        name
        for name, value in labels.items()
        if value != 0 and (set(name) & set("/\\\0") or name.startswith(".") or len(name.encode()) > LONGEST_NAME)
    ]
    if invalid:
        raise OutputError(
            "class names that are not valid file names", found=", ".join(invalid), hint="leave --split-classes out"
        )


def output_sha256(path: Path) -> str:
    """Return the hash of a mask's file, or of the names and contents of its folder's files."""
    if path.is_file():
        return file_sha256(path)
    lines = [f"{file.name} {file_sha256(file)}\n" for file in sorted(path.iterdir()) if file.is_file()]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _is_class_file(path: Path) -> bool:
    return path.name.endswith(OUTPUT_SUFFIX) and path.is_file()
