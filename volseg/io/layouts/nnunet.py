"""nnU-Net v2 raw: ``imagesTr/case_0000.nii.gz``, ``labelsTr/case.nii.gz`` and ``channel_names`` in ``dataset.json``."""

from __future__ import annotations

from pathlib import Path

from volseg.errors import DataError
from volseg.io.cases import CHANNEL, Case, case_name, find_volumes, refuse
from volseg.io.description import Description
from volseg.io.layouts.found import Found, by_name, check_numbers, paired
from volseg.io.paths import is_folder
from volseg.io.volumes import has_volume_suffix


def find(root: Path, description: Description | None) -> Found | None:
    """Return the cases of ``imagesTr`` and ``labelsTr``, and the scans of ``imagesTs``.

    Raises:
        DataError: Images and labels do not pair up, a case has other channels than ``channel_names``, or files have
            another ending than ``file_ending``.
    """
    if description is None or not description.names_channels or not is_folder(root / "imagesTr"):
        return None
    channels = description.channels or ()
    for folder in ("imagesTr", "labelsTr"):
        _check_endings(root / folder, description)
    cases = paired(root, _numbered(root / "imagesTr", len(channels)), by_name(root / "labelsTr"))
    held_out = _numbered(root / "imagesTs", len(channels)) if is_folder(root / "imagesTs") else {}
    unlabelled = tuple(Case(name, paths, None) for name, paths in held_out.items())
    return Found(cases, unlabelled, labels_required=True)


def _numbered(folder: Path, channels: int) -> dict[str, tuple[Path, ...]]:
    """Return the files of each case, which must be numbered from ``_0000`` on."""
    groups: dict[str, list[Path]] = {}
    for path in sorted(find_volumes(folder), key=case_name):
        groups.setdefault(CHANNEL.sub("", case_name(path)), []).append(path)
    return check_numbers(folder, groups, channels)


def _check_endings(folder: Path, description: Description) -> None:
    """Check that all scans have the ending that ``dataset.json`` states; nnU-Net would not see the others."""
    ending = description.file_ending
    if ending is None:
        return
    if not has_volume_suffix(f"x{ending}"):
        expected, hint = "a format of volumes, such as .nii.gz, .nrrd or .mha", "convert the files"
        raise DataError(
            "this file_ending is not read", file=description.file, found=ending, expected=expected, hint=hint
        )
    others = [path.name for path in find_volumes(folder) if not path.name.endswith(ending)]
    hint = "convert these files or move them to another folder, or correct file_ending in dataset.json"
    refuse(f'files that do not end in "{ending}", the file_ending of dataset.json', folder, others, hint=hint)
