"""Out-of-fold masks: every case as the model predicted it that was not trained on it."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from volseg.crossvalidation.folds import Fold
from volseg.crossvalidation.setup import CrossValidation, check_same_inputs
from volseg.errors import ConfigError, OutputError, counted
from volseg.evaluation.choose_postprocessing import PredictedCase
from volseg.io.atomic import atomic_folder
from volseg.io.cases import listed
from volseg.io.datasets import Dataset
from volseg.io.volumes import has_mask_suffix, read_mask, volume_stem, write_mask
from volseg.postprocessing.rules import Postprocessing

logger = logging.getLogger(__name__)

VALIDATION = "validation"
MASKS, POSTPROCESSED = "masks", "masks_postprocessed"
"""Folders in ``validation``: links to the masks of the folds, and the same masks with the chosen postprocessing."""


def require_finished(folds: Sequence[Fold]) -> None:
    """Check that all folds are trained, have predicted their held-out cases, and saw the same data.

    Raises:
        ConfigError: Some are not; each is named.
        DataError: They were trained with other plans or cases.
    """
    lacking = {fold.number: fold.lacks() for fold in folds}
    lines = [f"fold {number}: {what}" for number, what in lacking.items() if what is not None]
    if lines:
        raise ConfigError(
            f"not finished: {len(lines)} of {counted(len(folds), 'fold')}",
            file=folds[0].folder.parent,
            found="\n    ".join(["", *lines]),
            hint="continue them with the same command without --collect, or select others with --folds",
        )
    check_same_inputs(folds)


def link_masks(crossval: CrossValidation) -> tuple[list[PredictedCase], tuple[str, ...]]:
    """Collect the out-of-fold masks as links, copies where the file system has none, in ``validation/masks``.

    Returns:
        The cases with their masks, and the names of held-out cases that could not be predicted.

    Raises:
        OutputError: The folder holds other files, or cannot be written.
    """
    files = {case: file for fold in crossval.folds for case, file in fold.mask_files().items()}
    held_out = [case for fold in crossval.folds for case in fold.held_out]
    folder = crossval.folder / VALIDATION / MASKS
    check_masks_only(folder, crossval.dataset)
    with atomic_folder(folder) as new:
        for file in files.values():
            _link(new / file.name, file)
    by_id = {case.id: case for case in crossval.dataset.cases}
    left_out = sorted(by_id.keys() - {*held_out})
    if left_out:
        text = "held out by none of these folds: %s: %s"
        logger.warning(text, counted(len(left_out), "case"), listed(left_out))
    predicted = [PredictedCase(by_id[case], folder / files[case].name) for case in sorted(files)]
    return predicted, tuple(case for case in held_out if case not in files)


def write_postprocessed(
    crossval: CrossValidation, predicted: Sequence[PredictedCase], postprocessing: Postprocessing
) -> Path | None:
    """Write the masks with a postprocessing; masks of a former choice are removed.

    Returns:
        Their folder; ``None`` if there is nothing to do.

    Raises:
        OutputError: The folder holds other files, or cannot be written.
    """
    folder, labels = crossval.folder / VALIDATION / POSTPROCESSED, crossval.plan.labels
    check_masks_only(folder, crossval.dataset)
    if postprocessing == Postprocessing():
        if folder.exists():
            shutil.rmtree(folder)
        return None
    with atomic_folder(folder) as new:
        for one in predicted:
            mask, _ = postprocessing.apply(read_mask(one.mask), labels)
            write_mask(new / one.mask.name, mask, source=one.mask, labels=labels)
    return folder


def check_masks_only(folder: Path, dataset: Dataset) -> None:
    """Check that a folder, if it exists, holds nothing but masks of these cases, so that it can be replaced.

    Raises:
        OutputError: It holds other files.
    """
    names, found = {case.id for case in dataset.cases}, sorted(folder.iterdir()) if folder.exists() else []
    others = [path.name for path in found if not has_mask_suffix(path) or volume_stem(path) not in names]
    if others:
        hint = "move them elsewhere"
        raise OutputError("the folder of masks holds other files", file=folder, found=listed(others), hint=hint)


def _link(path: Path, target: Path) -> None:
    """Link to a file by its path relative to the folder, so that all can be moved together; copy where that fails."""
    relative = Path("..", "..", *target.parts[-4:])  # fold_0/validation/masks/case.nii.gz
    with suppress(OSError, NotImplementedError):  # Windows without the right to make links, file systems without them
        path.symlink_to(relative)
        return
    shutil.copyfile(target, path)
