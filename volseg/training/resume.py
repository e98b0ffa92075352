"""Resuming a run: which settings may change, and what becomes of those that are not given."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from volseg.config.load import Source, config_to_dict, config_to_yaml, given_values, load_config, output_folder
from volseg.config.schema import Config
from volseg.errors import ConfigError
from volseg.io.atomic import atomic_file
from volseg.io.json_files import encoded
from volseg.training.checkpoint import CHECKPOINTS, has_checkpoint
from volseg.training.schedule import Budget, learning_rate_factor

logger = logging.getLogger(__name__)

CONFIG_FILE = "config.yaml"
MAY_CHANGE = {
    "output": "a run folder may be moved",
    "device": "every device computes the same function; only rounding and the noise of the augmentation differ",
    "deterministic": "only rounding differs",
    "data.root": "data may be moved; the content of all cases is compared",
    "data.splits": "a split file may be moved; the split itself is compared",
    "data.cache": "the cache is filled again where it is empty",
    "data.cache_limit": "it stops a run, and changes none",
    "data.workers": "samples do not depend on the number of workers",
    "model.attention": "the kernels compute the same function; only rounding differs",
    "model.checkpoint_encoder": "it trades time for memory; gradients are the same",
    "train.max_steps": "the end of a run; the learning rate follows the schedule of the new length",
    "train.max_minutes": "the end of a run; the learning rate follows the schedule of the new length",
    "train.replay": "the kernels are the same",
    "train.validate_every": "validation changes no weights",
    "train.validate_cases": "validation changes no weights; the best score starts anew",
    "train.keep_best": "it writes one file more; switched on, the best score starts anew",
    "train.stop_after": "the end of a run; weights up to there are the same",
    "train.logger": "it copies the log",
    "train.checkpoint_every": "checkpoints change no weights",
    "train.checkpoint_minutes": "checkpoints change no weights",
}
"""The settings that a resumed run may change, and why; everything else decides what the weights or scores mean."""
VALIDATED = "train.validate_cases"
KEEP_BEST = "train.keep_best"
ENDS = ("train.max_steps", "train.max_minutes")
HINT = "leave these settings out to continue with those of the run, or start a new run with another output="


@dataclass(frozen=True)
class Change:
    """A setting that differs from the run's.

    Attributes:
        key: Its name with sections: ``train.max_steps``.
        before: Its value in the run.
        after: The value given.
    """

    key: str
    before: Any
    after: Any

    def __str__(self) -> str:
        return f"{self.key}: the run has {_text(self.before)}, given {_text(self.after)}"


def config_to_resume(source: Source, overrides: Sequence[str], run: Path | None = None) -> Config:
    """Return the configuration with which a run continues: that of the run, with what is given in its place.

    A run without a checkpoint starts anew, with the configuration given, or with its own if none is given.

    The settings that may change are taken from overrides alone, and not from a file: a run may have been started with
    the same file and overrides that are not repeated.

    Args:
        source: As in :func:`volseg.config.load.load_config`.
        overrides: ``key=value`` strings.
        run: The run folder; otherwise it is ``output`` of the source and the overrides.

    Raises:
        ConfigError: A value is invalid, there is no run in the folder, or a setting differs that may not change; all
            are listed.
    """
    folder = _run_folder(source, overrides, run)
    overrides = [*overrides, f"output={json.dumps(str(folder))}"]
    stored_file = folder / CONFIG_FILE
    if not has_checkpoint(folder / CHECKPOINTS):
        if run is not None and source is None and not stored_file.exists():
            hint = "give the folder of a run, or start one with --config FILE output=FOLDER, without --resume"
            raise ConfigError("there is no run in this folder", file=folder, hint=hint)
        return load_config(stored_file if run is not None and source is None else source, overrides)
    if not stored_file.exists():
        raise ConfigError("the configuration of the run is missing", file=stored_file, hint="restore it from a copy")
    stored = load_config(stored_file)
    if isinstance(source, str | Path):
        _log_kept(source, overrides, stored)
        source = _fixed(given_values(source, []))
    config = load_config(source, overrides, base=stored)
    refuse_changes(changes(stored, config), stored_file)
    return config


def _log_kept(file: str | Path, overrides: Sequence[str], stored: Config) -> None:
    """Log the settings that a file would change and no override states."""
    in_file, in_overrides = dict(_leaves(given_values(file, []))), dict(_leaves(given_values(None, overrides)))
    found = changes(stored, load_config(file, base=stored))
    kept = [one for one in found if one.key in MAY_CHANGE and one.key in in_file and one.key not in in_overrides]
    if kept:
        texts = [f"{change.key}={_text(change.before)} (in {file}: {_text(change.after)})" for change in kept]
        logger.info("kept from the run, unless given as key=value: %s", ", ".join(texts))


def _fixed(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the values, nested, of the settings that may not change."""
    return {
        key: _fixed(value, f"{prefix}{key}.") if isinstance(value, Mapping) else value
        for key, value in values.items()
        if f"{prefix}{key}" not in MAY_CHANGE
    }


def _run_folder(source: Source, overrides: Sequence[str], run: Path | None) -> Path:
    """Return the folder of the run to resume."""
    if run is None:
        return Path(output_folder(source, overrides))
    given = given_values(None, overrides).get("output")
    if given is not None and Path(given).resolve() != run.resolve():
        hint = "give the run folder once"
        raise ConfigError("--resume and output= name different folders", found=f"{run}, {given}", hint=hint)
    return run


def save_config(config: Config, folder: Path) -> None:
    """Write the configuration of a run into its folder.

    Raises:
        OutputError: The file cannot be written.
    """
    with atomic_file(folder / CONFIG_FILE) as file:
        file.write(encoded(config_to_yaml(config)))


def changes(before: Config, after: Config) -> list[Change]:
    """Return the settings that differ, in the order of the schema."""
    old, new = dict(_leaves(config_to_dict(before))), dict(_leaves(config_to_dict(after)))
    keys = [*new, *(key for key in old if key not in new)]
    return [Change(key, old.get(key), new.get(key)) for key in keys if old.get(key) != new.get(key)]


def refuse_changes(found: Sequence[Change], file: Path) -> None:
    """Check that only settings of `MAY_CHANGE` differ.

    Raises:
        ConfigError: Others do; each is listed with both values.
    """
    refused = [change for change in found if change.key not in MAY_CHANGE]
    if refused:
        lines = "\n    ".join([f"{len(refused)}:", *map(str, refused)])
        raise ConfigError("the settings are not those of the run that is resumed", file=file, found=lines, hint=HINT)


def refuse_earlier_end(found: Sequence[Change], config: Config, step: int, elapsed_s: float) -> None:
    """Check that a new end of the run is not before what it has done: its settings would not be those of its weights.

    Args:
        found: The changes.
        config: Configuration from here on.
        step: Finished steps.
        elapsed_s: Seconds of training and validation so far.

    Raises:
        ConfigError: The end is earlier.
    """
    if not any(change.key in ENDS for change in found):
        return
    end = config.train
    if end.max_steps is not None and step > end.max_steps:
        given, done = f"train.max_steps={end.max_steps}", f"train.max_steps={step}"
    elif end.max_minutes is not None and elapsed_s > 60 * end.max_minutes:
        given, done = f"train.max_minutes={end.max_minutes:g}", f"train.max_minutes={math.ceil(elapsed_s / 6) / 10:g}"
    else:
        return
    raise ConfigError(
        "the run is beyond this end already",
        found=given,
        expected=f"at least {done}",
        hint=f"{done} ends it here; for a shorter run start a new one with another output=",
    )


def log_changes(found: Sequence[Change], before: Config, after: Config, step: int, elapsed_s: float) -> None:
    """Log the settings that change, each with its reason, and what becomes of the learning rate.

    Args:
        found: The changes.
        before: Configuration of the run so far.
        after: Configuration from here on.
        step: Finished steps.
        elapsed_s: Seconds of training and validation so far.
    """
    for change in found:
        values = _text(change.before), _text(change.after)
        logger.info("%s: %s until now, %s from here on (%s)", change.key, *values, MAY_CHANGE[change.key])
    if any(change.key in ENDS for change in found):
        rates = []
        for config in (before, after):
            spent = Budget.from_config(config.train).progress(step, elapsed_s)
            rates.append(config.train.lr * learning_rate_factor(spent, config.train))
        text = "at step %d the schedule of the former length has the learning rate %.2e, that of the new one %.2e"
        logger.warning(text, step, *rates)


def _leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every setting with its full key; an empty group is none."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _text(value: Any) -> str:
    """Return a value as on the command line."""
    return value if isinstance(value, str) else json.dumps(value, default=str)
