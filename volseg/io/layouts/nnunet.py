"""nnU-Net v2 raw: ``imagesTr/case_0000.nii.gz``, ``labelsTr/case.nii.gz`` and ``channel_names`` in ``dataset.json``."""

from __future__ import annotations

from pathlib import Path

from volseg.errors import DataError
from volseg.io.cases import CHANNEL, Case, case_name, find_volumes
from volseg.io.description import Description
from volseg.io.findings import Finding
from volseg.io.layouts.found import Found, by_name, check_numbers, others_in, paired, without
from volseg.io.paths import is_folder
from volseg.io.volumes import has_volume_suffix


def find(root: Path, description: Description | None) -> Found | None:
    """Return the cases of ``imagesTr`` and ``labelsTr``, and the scans of ``imagesTs``.

    Findings are images and labels that do not pair up, cases with other channels than ``channel_names``, and files with
    another ending than ``file_ending``.

    Raises:
        DataError: Scans with this ``file_ending`` are not read.
    """
    if description is None or not description.names_channels or not is_folder(root / "imagesTr"):
        return None
    channels = description.channels or ()
    folders = [root / name for name in ("imagesTr", "labelsTr", "imagesTs") if is_folder(root / name)]
    findings = others_in(*folders)
    for name in ("imagesTr", "labelsTr"):
        findings += _endings(root / name, description)
    images, numbers = _numbered(root / "imagesTr", len(channels))
    cases, unpaired = paired(images, by_name(root / "labelsTr", findings), root / "labelsTr")
    held_out, test_numbers = _numbered(root / "imagesTs", len(channels)) if is_folder(root / "imagesTs") else ({}, [])
    unlabelled = (Case(name, paths, None) for name, paths in held_out.items())
    findings += [*numbers, *test_numbers, *unpaired]
    return Found(
        cases=without(cases, findings),
        unlabelled=without(unlabelled, findings),
        labels_required=True,
        test_split=True,
        findings=tuple(findings),
    )


def _numbered(folder: Path, channels: int) -> tuple[dict[str, tuple[Path, ...]], list[Finding]]:
    """Return the files of each case, which must be numbered from ``_0000`` on, and those that are not."""
    groups: dict[str, list[Path]] = {}
    for path in sorted(find_volumes(folder), key=case_name):
        groups.setdefault(CHANNEL.sub("", case_name(path)), []).append(path)
    return check_numbers(groups, channels)


def _endings(folder: Path, description: Description) -> list[Finding]:
    """Return the scans that have another ending than ``dataset.json`` states; nnU-Net would not see them."""
    ending = description.file_ending
    if ending is None:
        return []
    if not has_volume_suffix(f"x{ending}"):
        expected, hint = "a format of volumes, such as .nii.gz, .nrrd or .mha", "convert the files"
        raise DataError(
            "this file_ending is not read", file=description.file, found=ending, expected=expected, hint=hint
        )
    others = [path for path in find_volumes(folder) if not path.name.endswith(ending)]
    return [Finding("file-ending", (path,), f'does not end in "{ending}"') for path in others]
