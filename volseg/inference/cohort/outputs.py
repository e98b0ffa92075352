"""The files that a case gets, and what they are called."""

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
"""Bytes of a class's name in a file name."""


@dataclass(frozen=True, kw_only=True)
class Outputs:
    """What is written for each case.

    Attributes:
        folder: Where.
        split_classes: ``<case>/<class>.nii.gz``, one file (0 and 1) a class, instead of ``<case>.nii.gz``. Not beside
            it: in a folder that holds both, a case would have two masks.
        probabilities: ``<case>_probabilities.npy``, all classes.
        uncertainty: ``<case>_uncertainty.nii.gz``.
    """

    folder: Path
    split_classes: bool = False
    probabilities: bool = False
    uncertainty: bool = False

    def mask(self, case: str) -> Path:
        """The label map, or the folder of the class files."""
        return self.folder / (case if self.split_classes else f"{case}{OUTPUT_SUFFIX}")

    def probabilities_of(self, case: str) -> Path | None:
        """Where the probabilities go, if they are wanted."""
        return self.folder / f"{case}_probabilities.npy" if self.probabilities else None

    def uncertainty_of(self, case: str) -> Path | None:
        """Where the uncertainty map goes, if it is wanted."""
        return self.folder / f"{case}_uncertainty{OUTPUT_SUFFIX}" if self.uncertainty else None

    def all_of(self, case: str) -> list[Path]:
        """Everything that is wanted for a case, the mask first."""
        extras = (self.probabilities_of(case), self.uncertainty_of(case))
        return [self.mask(case), *(path for path in extras if path is not None)]

    def existing(self, case: str) -> list[Path]:
        """What of it is there, the mask first."""
        return [path for path in self.all_of(case) if path.exists()]

    def check(self, case: Case) -> None:
        """See that nothing is lost when a case is written.

        Raises:
            OutputError: An output would replace the case's own scan, or a folder that holds other things.
        """
        for path in self.all_of(case.id):
            for image in case.images:
                if path.resolve() in (image.resolve(), *image.resolve().parents):
                    raise OutputError("the mask would replace its own scan", file=path, hint="choose another folder")
        mask = self.mask(case.id)
        strange = [file.name for file in mask.iterdir() if not _is_class_file(file)] if mask.is_dir() else []
        if strange or (mask.exists() and mask.is_dir() != self.split_classes):
            raise OutputError(
                "something else has the name of the case's mask and is not replaced",
                file=mask,
                found=f"a folder with {', '.join(sorted(strange)[:5])}" if mask.is_dir() else "a file",
                hint="choose another output folder",
            )

    def write_mask(self, case: Case, mask: Mask, labels: Mapping[str, int]) -> None:
        """Write the mask, whole or not at all.

        Args:
            case: The case.
            mask: On the scan's grid.
            labels: File value of every class by name, background included.

        Raises:
            OutputError: It cannot be written.
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
                    inside = Mask((mask.labels == value).view(np.uint8), mask.grid)
                    write_mask(folder / f"{name}{OUTPUT_SUFFIX}", inside, source=source)


def check_class_names(labels: Mapping[str, int]) -> None:
    """Refuse names that cannot be file names, before anything is predicted.

    Raises:
        OutputError: There are some.
    """
    wrong = [
        name
        for name, value in labels.items()
        if value != 0 and (set(name) & set("/\\\0") or name.startswith(".") or len(name.encode()) > LONGEST_NAME)
    ]
    if wrong:
        raise OutputError(
            "classes whose names cannot be file names", found=", ".join(wrong), hint="leave --split-classes out"
        )


def output_sha256(path: Path) -> str:
    """Hash of a mask: of its file, or of the names and contents of a folder's files."""
    if path.is_file():
        return file_sha256(path)
    lines = [f"{file.name} {file_sha256(file)}\n" for file in sorted(path.iterdir()) if file.is_file()]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _is_class_file(path: Path) -> bool:
    return path.name.endswith(OUTPUT_SUFFIX) and path.is_file()
