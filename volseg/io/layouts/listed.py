"""Cases that ``dataset.json`` lists: ``training`` (Decathlon, MONAI) or ``dataset`` (nnU-Net v2)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from volseg.io.cases import Case, case_name, find_volumes, group_channels, refuse
from volseg.io.description import Description
from volseg.io.layouts.found import Found
from volseg.io.layouts.plain import FOLDERS
from volseg.io.paths import is_file, is_folder


def find(root: Path, description: Description | None) -> Found | None:
    """Return the listed cases; ``None`` if none are listed, or none of them exists beside ``images/`` and ``labels/``.

    The listed files count: names and folders of image and label may differ, and other files are left alone.

    Raises:
        DataError: Listed files do not exist.
    """
    if description is None or description.cases is None:
        return None
    cases = tuple(replace(case, images=_channel_files(case.images)) for case in description.cases)
    files = [path for case in cases for path in (*case.images, case.label) if path is not None]
    missing = [path for case in cases for path in case.images if not _is_there(path)]
    missing += [case.label for case in cases if case.label is not None and not is_file(case.label)]
    if len(missing) == len(files) and all(is_folder(root / name) for name in FOLDERS[0]):
        return None  # the description of the same cases in another layout
    hint = "restore the files, or remove the cases from the list"
    refuse("files listed in dataset.json do not exist", description.file, missing, hint=hint)
    test = (replace(case, images=_channel_files(case.images)) for case in description.unlabelled)
    return Found(cases, tuple(case for case in test if _exists(case)), labels_required=True)


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
