"""The folds of a cross-validation: their run folders and configurations, and what a fold lacks to be finished."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from volseg.config.load import load_config
from volseg.config.schema import Config
from volseg.errors import ModelFileError
from volseg.evaluation.sources import find_masks
from volseg.io.content import file_sha256
from volseg.io.json_files import read_json
from volseg.io.model_file import read_metadata
from volseg.io.model_folder import FOLD_PREFIX, MODEL_NAME
from volseg.io.paths import is_file, is_folder
from volseg.planning.plan import Plan
from volseg.training.checkpoint import CHECKPOINTS, has_checkpoint
from volseg.training.inputs import PLAN_FILE
from volseg.training.resume import CONFIG_FILE, ENDS, changes, refuse_changes
from volseg.training.run_folder import RUN_FILES

PREDICTED_BY = "predicted_by_sha256"
"""Key of a model file's ``training``: the file that predicted the held-out cases, before postprocessing was stored."""


@dataclass(frozen=True, kw_only=True)
class Fold:
    """One fold.

    Attributes:
        number: Its number.
        config: Configuration of its run.
        held_out: Names of the cases that it does not train on.
    """

    number: int
    config: Config
    held_out: tuple[str, ...]

    @property
    def folder(self) -> Path:
        """The run folder."""
        return Path(self.config.output)

    @property
    def masks(self) -> Path:
        """Folder of the masks of the held-out cases."""
        return self.folder / "validation" / "masks"

    @property
    def model_file(self) -> Path:
        """The trained model."""
        return self.folder / MODEL_NAME

    @property
    def has_run_files(self) -> bool:
        """Whether its run has come as far as its first step."""
        return any((self.folder / name).exists() for name in RUN_FILES)

    def mask_files(self) -> dict[str, Path]:
        """Return the masks of the held-out cases that could be predicted, by case."""
        found, records = find_masks(self.masks).cases, self._records()
        files = {case: found[case].file for case in self.held_out if case in found}
        return {case: file for case, file in files.items() if file is not None and records[case]["status"] != "failed"}

    def lacks(self) -> str | None:
        """Return what is missing for the fold to be finished; ``None`` if it is.

        Raises:
            ModelFileError: The model file is damaged.
        """
        if not is_file(self.model_file):
            return "training has not finished" if self.has_run_files else "training has not begun"
        metadata = read_metadata(self.model_file)
        trained, ends = metadata["config"].get("train", {}), [key.partition(".")[2] for key in ENDS]
        for name in ends:
            wanted = getattr(self.config.train, name)
            if trained.get(name) != wanted:
                return f"it was trained with train.{name}={trained.get(name)}, and now it is {wanted}"
        records = self._records()
        without = [case for case in self.held_out if case not in records]
        if without:
            return f"{len(without)} of {len(self.held_out)} held-out cases are not predicted with its model"
        return None

    def _records(self) -> dict[str, Any]:
        """Return the record of every case that the model has predicted, or that failed."""
        trained = read_metadata(self.model_file)["training"]
        own = {file_sha256(self.model_file), trained.get(PREDICTED_BY)}
        records: dict[str, Any] = {}
        for document in self._summaries():
            if len(hashes := document.get("model_sha256", ())) == 1 and hashes[0] in own:
                records |= document["cases"]
        return records

    def _summaries(self) -> Iterator[dict[str, Any]]:
        """Yield the summaries of the predictions, one for each process that predicted."""
        for path in sorted(self.masks.glob("summary*.json")) if is_folder(self.masks) else ():
            document = read_json(path, "summary", ModelFileError)
            if isinstance(document, dict) and isinstance(document.get("cases"), dict):
                yield document


def fold_folder(folder: Path, number: int) -> Path:
    """Return the run folder of a fold."""
    return folder / f"{FOLD_PREFIX}{number}"


def has_begun(run: Path) -> bool:
    """Return whether a run has something to lose: a checkpoint or a model."""
    return has_checkpoint(run / CHECKPOINTS) or is_file(run / MODEL_NAME)


def make_fold(config: Config, plan: Plan, number: int, held_out: list[str]) -> Fold:
    """Return a fold with the configuration of its run.

    Args:
        config: Configuration of the cross-validation; its ``output`` is the folder of all folds.
        plan: The plan of all folds, stored in this folder.
        number: Number of the fold.
        held_out: Cases that it does not train on.

    Raises:
        ConfigError: The run has begun with settings that differ and may not change.
    """
    folder = Path(config.output)
    run = fold_folder(folder, number)
    settings = replace(
        config,
        output=str(run),
        plan={"file": str(folder / PLAN_FILE)},
        data=replace(config.data, fold=number, cache=config.data.cache or str(folder.parent / "preprocessed")),
        train=replace(config.train, batch_size=config.train.batch_size or plan.batch_size),
    )
    if has_begun(run):
        before = load_config(run / CONFIG_FILE)
        settings = replace(settings, plan=before.plan)  # the folder may have been moved; its plan is compared
        refuse_changes(changes(before, settings), run / CONFIG_FILE)
    return Fold(number=number, config=settings, held_out=tuple(held_out))
