"""Plain folders: ``images/`` and ``labels/`` with the same file names."""

from __future__ import annotations

from pathlib import Path

from volseg.errors import DataError
from volseg.io.cases import find_volumes, group_channels
from volseg.io.description import Description
from volseg.io.findings import Finding
from volseg.io.layouts.found import Found, by_name, check_numbers, others_in, paired, without
from volseg.io.paths import is_folder

FOLDERS = (("images", "labels"), ("imagesTr", "labelsTr"))


def find(root: Path, description: Description | None) -> Found | None:
    """Return the cases of ``images/`` and ``labels/``.

    An image has the name of its label, and holds all channels; or the images are ``case_0000``, ``case_0001`` ..., one
    file a channel, beside the label ``case``. Findings are images and labels that do not pair up.

    Raises:
        DataError: There are no images.
    """
    pairs = ((root / images, root / labels) for images, labels in FOLDERS)
    folders = next((pair for pair in pairs if all(map(is_folder, pair))), None)
    if folders is None:
        return None
    findings: list[Finding] = others_in(*folders)
    images, references = find_volumes(folders[0]), by_name(folders[1], findings)
    if not images and not references:
        expected = ".nii.gz files of the same names"
        raise DataError(f"{folders[0].name}/ and {folders[1].name}/ hold no scans", file=root, expected=expected)
    files: dict[str, tuple[Path, ...]] = {name: (path,) for name, path in by_name(folders[0], findings).items()}
    groups = group_channels(images)
    if len(groups.keys() & references.keys()) > len(files.keys() & references.keys()):
        count = len(description.channels) if description and description.channels else max(map(len, groups.values()))
        files, wrong = check_numbers(groups, count)
        findings += wrong
    cases, unpaired = paired(files, references, folders[1])
    findings += unpaired
    return Found(without(cases, findings), findings=tuple(findings))
