"""Cases that ``dataset.json`` lists: ``training`` (Decathlon, MONAI) or ``dataset`` (nnU-Net v2)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from volseg.errors import DataError
from volseg.io.cases import Case, case_name, find_volumes, group_channels
from volseg.io.description import Description
from volseg.io.findings import Finding
from volseg.io.layouts.found import Found, missing_files, others_in, repeated_names, without
from volseg.io.layouts.plain import FOLDERS
from volseg.io.paths import is_file, is_folder

FOLDER_NAMES = {name for pair in FOLDERS for name in pair}


def find(root: Path, description: Description | None) -> Found | None:
    """Return the listed cases; ``None`` if none are listed, or none of them exists beside ``images/`` and ``labels/``.

    The listed files count: names and folders of image and label may differ, and other files are left alone. Findings
    are listed files that do not exist, and cases that are listed twice.
    """
    if description is None or description.cases is None:
        return None
    cases = tuple(replace(case, images=_channel_files(case.images)) for case in description.cases)
    files = [path for case in cases for path in (*case.images, case.label) if path is not None]
    missing = [path for case in cases for path in case.images if not _is_there(path)]
    missing += [case.label for case in cases if case.label is not None and not is_file(case.label)]
    if len(missing) == len(files) and all(is_folder(root / name) for name in FOLDERS[0]):
        if any(case.fold is not None for case in cases):
            raise DataError(
                "none of the listed files exists, so folds or validation cases would be lost",
                file=root / "dataset.json",
                found=str(missing[0]),
                hint="correct the paths, with / between folders, or remove the list",
            )
        return None  # the description of the same cases in another layout
    count = len(cases) - description.validation
    part = " of training" if description.validation else ""
    entries = [f"entry {number}{part}" for number in range(1, count + 1)]
    entries += [f"entry {number} of validation" for number in range(1, description.validation + 1)]
    findings: list[Finding] = [*missing_files(cases), *repeated_names(cases, entries), *_unlisted(cases)]
    test = (replace(case, images=_channel_files(case.images)) for case in description.unlabelled)
    return Found(
        without(cases, findings),
        tuple(case for case in test if _exists(case)),
        labels_required=True,
        test_split=True,
        findings=tuple(findings),
    )


def _unlisted(cases: tuple[Case, ...]) -> list[Finding]:
    """Return what is not read in the folders of the listed files: entries that are not scans."""
    folders = {path.parent for case in cases for path in (*case.images, case.label) if path is not None}
    return others_in(*sorted(folder for folder in folders if folder.name in FOLDER_NAMES and is_folder(folder)))


def _exists(case: Case) -> bool:
    return all(map(_is_there, case.images))


def _is_there(image: Path) -> bool:
    """Return whether an image is a file, or a folder, which may hold a DICOM series."""
    return is_file(image) or is_folder(image)


def _channel_files(images: tuple[Path, ...]) -> tuple[Path, ...]:
    """Return the listed files; ``case`` may stand for ``case_0000``, ``case_0001`` ... beside it (nnU-Net v1)."""
    if len(images) > 1 or _is_there(images[0]) or not is_folder(images[0].parent):
        return images
    return group_channels(find_volumes(images[0].parent)).get(case_name(images[0]), images)
