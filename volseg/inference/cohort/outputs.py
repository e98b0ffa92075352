"""Names, checks and writing of the output files of a case."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from volseg.config.mask_formats import (
    DICOM_ENDINGS,
    MASK_FORMATS,
    PROBABILITIES,
    UNCERTAINTY,
    default_ending,
    ending_of,
)
from volseg.errors import ConfigError, DataError, OutputError
from volseg.geometry.grid import Grid
from volseg.geometry.volume import Mask
from volseg.inference.cohort.names import is_file_name
from volseg.io.atomic import atomic_folder
from volseg.io.cases import Case, list_folder, listed
from volseg.io.content import file_sha256
from volseg.io.dicom import is_series
from volseg.io.paths import is_folder
from volseg.io.volumes import check_grid, check_libraries, has_mask_suffix, volume_stem, write_mask
from volseg.planning.plan import Plan


@dataclass(frozen=True, kw_only=True)
class Outputs:
    """The files that are written for each case. ``.nii.gz`` below stands for the ending of the mask's format.

    Attributes:
        folder: Output folder.
        mask_format: Format of the masks, a key of ``MASK_FORMATS``; ``None`` takes that of each scan.
        file_name: Name of the mask, where one scan is predicted into one file; ``None`` names masks by their cases.
        split_classes: Write ``<case>/<class>.nii.gz``, one binary mask per class, instead of ``<case>.nii.gz``. Not
            both: evaluation would find two masks of a case in one folder.
        probabilities: Write ``<case>_probabilities.nii``, all classes, for masks of every format.
        uncertainty: Write ``<case>_uncertainty.nii.gz``, likewise.
    """

    folder: Path
    mask_format: str | None = None
    file_name: str | None = None
    split_classes: bool = False
    probabilities: bool = False
    uncertainty: bool = False

    @property
    def file_stem(self) -> str | None:
        """Name of the only mask without its ending; ``None`` where masks are named by their cases."""
        return None if self.file_name is None else self.file_name[: -len(ending_of(self.file_name) or "")]

    def mask(self, case: Case) -> Path:
        """Return the path of the label map, or the folder of the class files."""
        if self.file_name is not None:
            return self.folder / self.file_name
        return self.folder / (case.id if self.split_classes else f"{case.id}{self._ending(case)}")

    def probabilities_of(self, case: Case) -> Path | None:
        """Return the path of the probabilities, or ``None`` if they are not requested."""
        return self._map(case, PROBABILITIES) if self.probabilities else None

    def uncertainty_of(self, case: Case) -> Path | None:
        """Return the path of the uncertainty map, or ``None`` if it is not requested."""
        return self._map(case, UNCERTAINTY) if self.uncertainty else None

    def all_of(self, case: Case) -> list[Path]:
        """Return all paths that are requested for a case, the mask first."""
        extras = (self.probabilities_of(case), self.uncertainty_of(case))
        return [self.mask(case), *(path for path in extras if path is not None)]

    def existing(self, case: Case) -> list[Path]:
        """Return the requested paths that exist, the mask first."""
        return [path for path in self.all_of(case) if path.exists()]

    def check(self, cases: Sequence[Case]) -> None:
        """Check, before anything is written, that masks can be written, and replace no scan and no other case's output.

        Raises:
            ConfigError: The format has no files of single classes.
            MissingExtraError: The format needs a library that is not installed.
            DataError: A case id is not a valid file name.
            OutputError: The folder holds scans of this run, or a mask of a case in another form, or an output is a
                scan, its folder, or another case's.
        """
        for ending in {self._ending(case) for case in cases}.intersection(DICOM_ENDINGS):
            check_libraries(f"mask{ending}")
            if self.split_classes:
                hint = "leave --split-classes out"
                raise ConfigError("this format holds all classes in one file", found=self.mask_format, hint=hint)
        images = sorted({image for case in cases for image in case.images})
        scans = {image.resolve() for image in images}
        scans_and_folders = scans.union(*(scan.parents for scan in scans))
        beside = [image for image in images if self.folder.resolve() in _folders_of(image)]
        in_series = self.folder.resolve() in scans
        if beside and (self.file_name is None or in_series):
            raise OutputError(
                "the masks would lie among the scans, and the next run would take them for scans",
                file=self.folder,
                found=beside[0].name,
                hint="choose another output folder",
            )
        if self.file_name is None and is_folder(self.folder):
            self._check_other_masks(cases, scans_and_folders)
        owners: dict[Path, str] = {}
        for case in cases:
            if not is_file_name(case.id):
                raise DataError("the id of a case is not a file name", found=repr(case.id))
            for path in self.all_of(case):
                if path.resolve() in scans_and_folders:
                    raise OutputError("an output would replace a scan", file=path, hint="choose another output folder")
                if owners.setdefault(path, case.id) != case.id:
                    raise OutputError(
                        "two cases would write the same file",
                        file=path,
                        found=f"{owners[path]} and {case.id}",
                        hint="rename one of the scans, or predict them into different folders",
                    )

    def _check_other_masks(self, cases: Sequence[Case], scans_and_folders: set[Path]) -> None:
        """Refuse a folder that holds masks of the cases in other forms: evaluation would find two of each.

        Args:
            cases: All cases.
            scans_and_folders: Files and folders that are no masks.
        """
        own = {case.id: self.mask(case) for case in cases}
        others = [
            path
            for path in list_folder(self.folder)
            if own.get(volume_stem(path), path) != path and _is_mask(path) and path.resolve() not in scans_and_folders
        ]
        if others:
            raise OutputError(
                "the folder holds masks of these scans in another form, and volseg evaluate would find two of a case",
                file=self.folder,
                found=listed([path.name for path in others]),
                hint="choose another output folder or the --format of these masks, or move them away",
            )

    def check_series(self, case: Case) -> None:
        """Check that the scan is a DICOM series, if the mask has to refer to one.

        Raises:
            OutputError: It is not.
        """
        if self._ending(case) in DICOM_ENDINGS and not is_series(case.images[0]):
            raise OutputError(
                "a mask in DICOM needs a DICOM series as the scan",
                file=case.images[0],
                hint="predict the series, or choose another --format",
            )

    def check_grid(self, case: Case, grid: Grid) -> None:
        """Check, before the scan is segmented, that the format of its mask can hold its grid.

        Raises:
            OutputError: It cannot.
        """
        check_grid(f"{case.id}{self._ending(case)}", grid)

    def check_mask_path(self, case: Case) -> None:
        """Check that the path of the mask is free or holds a mask of the same form.

        Raises:
            OutputError: There is a folder with other files, or a file where a folder is needed, or the reverse.
        """
        mask = self.mask(case)
        other_files = [file.name for file in mask.iterdir() if not _is_class_file(file)] if mask.is_dir() else []
        if other_files or (mask.exists() and mask.is_dir() != self.split_classes):
            raise OutputError(
                "the path of the mask is taken by something else, which is not replaced",
                file=mask,
                found=f"a folder with {', '.join(sorted(other_files)[:5])}" if mask.is_dir() else "a file",
                hint="choose another output folder",
            )

    def write_mask(self, case: Case, mask: Mask, plan: Plan) -> None:
        """Write the mask atomically.

        Args:
            case: The case.
            mask: The mask, on the scan's grid.
            plan: Names the classes and their values in masks.

        Raises:
            OutputError: The mask cannot be written.
        """
        path = self.mask(case)
        first = case.images[0]
        source = first if first.exists() else None
        if not self.split_classes:
            write_mask(path, mask, source=source, labels=plan.labels)
            return
        with atomic_folder(path) as folder:
            for name, values in plan.label_map.classes.items():
                binary = Mask(np.isin(mask.labels, values).view(np.uint8), mask.grid)
                write_mask(folder / f"{name}{self._ending(case)}", binary, source=source, labels={name: 1})

    def _map(self, case: Case, ending: str) -> Path:
        """Return the path of a map of values."""
        return self.folder / f"{self.file_stem or case.id}{ending}"

    def _ending(self, case: Case) -> str:
        """Return the ending of the name of a case's mask."""
        if self.file_name is not None:
            return ending_of(self.file_name) or ""
        return MASK_FORMATS[self.mask_format] if self.mask_format else default_ending(case.images[0].name)


def output_sha256(path: Path) -> str:
    """Return the hash of a mask's file, or of the names and contents of its folder's files."""
    if path.is_file():
        return file_sha256(path)
    lines = [f"{file.name} {file_sha256(file)}\n" for file in sorted(path.iterdir()) if file.is_file()]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _folders_of(image: Path) -> set[Path]:
    """Return the folder of a scan, that of the file which it links to, and the folder that is a DICOM series."""
    return {image.parent.resolve(), image.resolve().parent, image.resolve()}


def _is_mask(path: Path) -> bool:
    """Return whether an entry of a folder is a mask: a file, or a folder with a file per class."""
    if not is_folder(path):
        return has_mask_suffix(path)
    return not path.name.startswith(".") and any(map(_is_class_file, list_folder(path)))


def _is_class_file(path: Path) -> bool:
    return has_mask_suffix(path) and path.is_file()
