"""Writing a data set as nnU-Net v2 raw.

Source: nnU-Net's documentation/dataset_format.md and verify_dataset_integrity.py: consecutive label values, the
background 0, the ignore label the highest, one file a channel, all on one grid.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from volseg.errors import OutputError
from volseg.geometry.grid import Grid
from volseg.geometry.volume import Mask, Volume
from volseg.io import nifti
from volseg.io.atomic import atomic_folder
from volseg.io.cases import Case, list_folder
from volseg.io.checks import check_channels, load_case
from volseg.io.datasets import Dataset
from volseg.io.json_files import write_json
from volseg.io.labels import LabelMap, with_region_order
from volseg.io.modality import CT_BELOW_HU, UNKNOWN
from volseg.io.paths import exists, is_folder, is_link
from volseg.io.volumes import check_image, read_channels, read_grid, write_map, write_mask
from volseg.parallel import Progress, for_each_case
from volseg.planning.fingerprint import channel_range

logger = logging.getLogger(__name__)

ENDING = ".nii.gz"


def write_nnunet(
    dataset: Dataset,
    out: Path,
    *,
    resample_channels: bool = False,
    workers: int = 0,
    progress: Progress | None = None,
) -> None:
    """Write a data set as nnU-Net v2 raw; the folder appears when it is complete.

    Args:
        dataset: The data set; classes may be regions.
        out: Folder to write; it must not exist or be empty.
        resample_channels: Resample channels on other grids to that of the first.
        workers: Processes that convert cases.
        progress: Called after every case with (done, in all).

    Raises:
        DataError: Cases cannot be used; all are named.
        OutputError: The folder is not empty, or cannot be written.
    """
    _check_empty(out)
    values = consecutive_values(dataset.label_map)
    changed = [f"{old} -> {new}" for old, new in values.items() if old != new]
    if changed:
        logger.info("%s: label values are renumbered: %s", dataset.name, ", ".join(changed))
    with atomic_folder(out) as folder:
        for name in ("imagesTr", "labelsTr"):
            (folder / name).mkdir()
        work = partial(
            _convert,
            folder=folder,
            channels=dataset.channels,
            label_map=dataset.label_map,
            values=values,
            resample=resample_channels,
        )
        cases = [*dataset.cases, *dataset.unlabelled]
        looks_like_ct = np.array(for_each_case(work, cases, workers=workers, progress=progress))  # (N, C)
        description = {
            "name": dataset.name,
            "channel_names": _channel_names(dataset.channels, looks_like_ct),
            **_labels(dataset.label_map, values),
            "numTraining": len(dataset.cases),
            "file_ending": ENDING,
        }
        write_json(folder / "dataset.json", description)
        _check_empty(out)


def consecutive_values(label_map: LabelMap) -> dict[int, int]:
    """Return old -> new label value: 0, 1, 2 ... in the same order, then the ignore label."""
    ordered = sorted(label_map.known_values - {label_map.ignore_label})
    if label_map.ignore_label is not None:
        ordered.append(label_map.ignore_label)
    return {old: new for new, old in enumerate(ordered)}


def _check_empty(out: Path) -> None:
    """Check that nothing would be replaced."""
    taken = is_link(out) or (exists(out) and not is_folder(out)) or (is_folder(out) and list_folder(out))
    if taken:
        raise OutputError("the folder to write is not empty", file=out, hint="choose a folder that does not exist")


def _convert(
    case: Case,
    folder: Path,
    channels: Sequence[str],
    label_map: LabelMap,
    values: Mapping[int, int],
    resample: bool,
) -> list[bool]:
    """Write one case, and return for each channel whether its values are those of CT."""
    if case.label is None:
        volume = read_channels(case.images, resample=resample)
        check_channels(volume, channels, case.images[0])
        check_image(volume, case.images)
    else:
        volume, mask = load_case(case, channels, label_map, resample_channels=resample)
        _write_label(folder / "labelsTr" / f"{case.id}{ENDING}", mask, case, values)
    _write_images(folder / ("imagesTs" if case.label is None else "imagesTr"), volume, case)
    return [channel_range(channel)[0] < CT_BELOW_HU for channel in volume.data]


def _write_images(folder: Path, volume: Volume, case: Case) -> None:
    """Write a file per channel; files that are already so are copied."""
    single = len(case.images) == len(volume.data)
    for number, channel in enumerate(volume.data):
        path = folder / f"{case.id}_{number:04d}{ENDING}"
        if single and _is_usable(case.images[number], volume.grid):
            path.parent.mkdir(exist_ok=True)
            shutil.copyfile(case.images[number], path)
        else:
            write_map(path, channel, volume.grid)


def _write_label(path: Path, mask: Mask, case: Case, values: Mapping[int, int]) -> None:
    """Write the label with its new values; a file that is already so is copied."""
    assert case.label is not None  # checked by the caller
    integer = mask.labels.dtype.kind in "iu" and mask.labels.dtype.itemsize < 8
    if integer and _is_usable(case.label, mask.grid) and all(old == new for old, new in values.items()):
        shutil.copyfile(case.label, path)
        return
    write_mask(path, Mask(_renumbered(mask.labels, values), mask.grid))


def _renumbered(labels: NDArray[Any], values: Mapping[int, int]) -> NDArray[Any]:
    table = np.zeros(max(values) + 1, np.int32)
    for old, new in values.items():
        table[old] = new
    return np.asarray(table[labels])


def _is_usable(path: Path, grid: Grid) -> bool:
    """Return whether a file can be copied: compressed 3D NIfTI in mm on exactly this grid, by nnU-Net's tolerance."""
    if not path.name.endswith(ENDING) or not nifti.is_plain(path):
        return False
    own = read_grid(path)
    return own.shape == grid.shape and np.allclose(own.affine, grid.affine, rtol=1e-5, atol=1e-6)


def _channel_names(channels: Sequence[str], looks_like_ct: NDArray[np.bool_]) -> dict[str, str]:
    """Return number -> name; nnU-Net normalises by it, so the values of most cases name an unknown channel."""
    votes = ("CT" if share > 0.5 else "MRI" for share in looks_like_ct.mean(axis=0))
    named = [vote if name == UNKNOWN else name for name, vote in zip(channels, votes, strict=True)]
    return {str(number): name for number, name in enumerate(named)}


def _labels(label_map: LabelMap, values: Mapping[int, int]) -> dict[str, Any]:
    """Return ``labels``, and ``regions_class_order`` where there are regions."""
    label_map = with_region_order(label_map)
    new = {name: [values[value] for value in group] for name, group in label_map.classes.items()}
    labels: dict[str, Any] = {"background": 0}
    labels |= {name: group[0] if len(group) == 1 else group for name, group in new.items()}
    if label_map.ignore_label is not None:
        labels["ignore"] = values[label_map.ignore_label]
    if label_map.region_order is None or not label_map.regions:
        return {"labels": labels}
    return {"labels": labels, "regions_class_order": [values[value] for value in label_map.region_order]}
