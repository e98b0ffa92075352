"""Dice of all voxels of a test set together, as the study of DINOv2 on radiology (arXiv 2312.02366) reports it.

Source: the study's code, ``dinov2/eval/metrics.py`` and ``evaluate`` in ``dinov2/eval/utils.py`` of
MohammedSB/DINOv2ForRadiology: torchmetrics' ``Dice(average="macro", ignore_index=0)`` is updated with the slices of one
batch after the other and computed once at the end. True positives, false positives and false negatives are summed over
the voxels of all slices of all scans, per class; the result is the mean over the foreground classes. It is neither a
mean over slices nor over cases: large organs of large scans weigh most, and a missed case costs only its voxels. Here
the voxels are those of the scans, not of slices resized to the input of the network.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean

import numpy as np
from numpy.typing import NDArray

from volseg.io.checks import read_label
from volseg.io.datasets import Dataset
from volseg.io.json_files import read_json
from volseg.io.volumes import read_mask
from volseg.training.inputs import SPLIT_FILE

Labels = NDArray[np.integer]


def pooled_dice(
    pairs: Iterable[tuple[Labels, Labels]], classes: Mapping[str, Sequence[int]], ignore_label: int | None = None
) -> dict[str, float | None]:
    """Return the Dice of the voxels of all cases together.

    Args:
        pairs: Prediction and reference of each case, of one shape.
        classes: Name -> label values.
        ignore_label: Voxels of the reference with this value do not count.

    Returns:
        Class -> Dice, ``None`` for a class that is in no mask; ``mean`` over the others.
    """
    names = list(classes)
    overlap, sizes = np.zeros(len(names)), np.zeros(len(names))
    for prediction, reference in pairs:
        counted = True if ignore_label is None else reference != ignore_label
        for index, name in enumerate(names):
            ours, theirs = (np.isin(labels, classes[name]) & counted for labels in (prediction, reference))
            overlap[index] += np.count_nonzero(ours & theirs)
            sizes[index] += np.count_nonzero(ours) + np.count_nonzero(theirs)
    dice = {
        name: round(float(2 * shared / size), 5) if size else None
        for name, shared, size in zip(names, overlap, sizes, strict=True)
    }
    defined = [value for value in dice.values() if value is not None]
    return dice | {"mean": round(fmean(defined), 5) if defined else None}


def pooled_dice_of_run(run: Path, dataset: Dataset) -> dict[str, float | None]:
    """Return the pooled Dice of the masks of a run's held-out cases.

    Raises:
        SystemExit: Masks are missing, or there are others.
    """
    cases = {case.id: case for case in dataset.cases}
    files = {file.name.removesuffix(".nii.gz"): file for file in (run / "validation" / "masks").glob("*.nii.gz")}
    if others := sorted(files.keys() ^ {*read_json(run / SPLIT_FILE, "split")["val"]}):
        raise SystemExit(
            f"masks in {run / 'validation'} that are missing or not of held-out cases: {', '.join(others)}"
        )
    masks = ((read_mask(file), cases[name]) for name, file in sorted(files.items()))
    pairs = ((mask.labels, read_label(case, mask.grid).labels) for mask, case in masks)
    return pooled_dice(pairs, dataset.label_map.classes, dataset.label_map.ignore_label)
