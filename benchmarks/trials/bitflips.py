"""One flipped bit in a checkpoint, a cached array or a stored token: noticed, or used without a word."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from shared.text import say
from trials.mutations import Generator
from trials.processes import files_below
from trials.samples import TRAINING, make_data

logger = logging.getLogger("volseg")


def bitflips(work: Path, count: int, seed: int) -> dict[str, Any]:
    """Flip single bits.

    Args:
        work: Empty folder.
        count: Flips in checkpoints, and as many in cached files (half of them arrays of cases, half with tokens).
        seed: Seed of the positions.
    """
    rng = np.random.default_rng(seed)
    run = CachedRun(work)
    kinds = {
        "checkpoint": (count, run.checkpoints, run.read_checkpoint),
        "cached case": (count - count // 2, run.cases, run.read_cases),
        "stored tokens": (count // 2, run.tokens, run.read_tokens),
    }
    results: dict[str, Any] = {}
    for kind, (number, folder, read) in kinds.items():
        outcomes = [flip_and_read(folder, rng, read) for _ in range(number)]
        results[kind] = {"flips": number, **Counter(outcome for outcome, _ in outcomes)}
        results[kind]["unnoticed files"] = [place for outcome, place in outcomes if outcome == "unnoticed"][:10]
        say(f"bitflips: {kind}: {results[kind]}")
    unnoticed = sum(one.get("unnoticed", 0) for one in results.values())
    return {"trials": sum(one["flips"] for one in results.values()), "failed": unnoticed, "kinds": results}


def flip_and_read(folder: Path, rng: Generator, read: Callable[[], Any]) -> tuple[str, str]:
    """Flip a bit in one file of a folder, read the folder, and restore the file.

    Returns:
        ``refused`` (an error that names a file), ``mended`` (the values are the right ones again), ``notice`` (others
        are used, and the log says so) or ``unnoticed``; and the place of the bit.
    """
    from volseg.errors import VolsegError

    files = sorted(path for path in folder.rglob("*") if path.suffix == ".npy" or path.name == "last.pt")
    sizes = np.array([path.stat().st_size for path in files], float)
    path = files[int(rng.choice(len(files), p=sizes / sizes.sum()))]
    whole = {one: one.read_bytes() for one in folder.rglob("*") if one.is_file()}
    expected = read()
    damaged = bytearray(whole[path])
    place = int(rng.integers(len(damaged)))
    damaged[place] ^= 1 << int(rng.integers(8))
    path.write_bytes(damaged)
    notices = _Notices()
    logger.addHandler(notices)
    try:
        found = read()
        outcome = "mended" if found == expected else "notice" if notices.count else "unnoticed"
        if outcome == "mended" and path.exists() and path.read_bytes() == bytes(damaged):
            outcome = "unnoticed"
    except VolsegError as error:
        outcome = "refused" if error.file else "unnoticed"
    except Exception as error:
        outcome = type(error).__name__
    finally:
        logger.removeHandler(notices)
        for one in folder.rglob("*"):
            if one.is_file() and one not in whole:
                one.unlink()
        for one, data in whole.items():
            one.parent.mkdir(parents=True, exist_ok=True)
            one.write_bytes(data)
    return outcome, f"{path.name} at {place}"


class _Notices(logging.Handler):
    """Counts warnings."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.count = 0

    def emit(self, record: logging.LogRecord) -> None:
        self.count += 1


class CachedRun:
    """A run with preprocessed cases, stored tokens and a checkpoint.

    Args:
        work: Empty folder.
    """

    def __init__(self, work: Path) -> None:
        from volseg.config.load import load_config
        from volseg.training.experiment import prepare
        from volseg.training.samples import training_samples
        from volseg.training.state import TrainingState

        data, cache = make_data(work / "data", 3), work / "cache"
        own = [f"data.root={data}", f"output={work / 'run'}", f"data.cache={cache}", "data.workers=0"]
        tokens = ["model.encoder=tiny", "model.adaptation=frozen", "data.cache_tokens=true", "data.token_variants=2"]
        self._config = load_config(None, [*TRAINING, "train.max_steps=4", *own, *tokens])
        self._prepare, self._samples = prepare, training_samples
        self._experiment = self._prepared(resume=False)
        self._state = TrainingState(self._config, self._experiment.plan)
        self._samples(self._experiment, self._state.model, None)
        self.cases = self._experiment.train_cases[0].folder
        self.tokens = self.cases.parent / "tokens"
        self.checkpoints = self._experiment.checkpoint_folder
        self._write_checkpoints()

    def _prepared(self, resume: bool) -> Any:
        """Return the experiment, as training prepares it."""
        with self._prepare(self._config, resume=resume) as experiment:
            return experiment

    def _write_checkpoints(self) -> None:
        """Write two checkpoints, as training does one after the other."""
        from volseg.training.checkpoint import RunProgress

        for step in (1, 2):
            self._state.save(self.checkpoints, RunProgress(step=step))

    def read_checkpoint(self) -> Any:
        """Return the progress and the weights that training resumes with."""
        progress = self._state.restore(self.checkpoints)
        weights = self._state.model.state_dict()
        return replace(progress), {name: values.numpy().tobytes() for name, values in weights.items()}

    def read_cases(self) -> Any:
        """Return the content of the arrays from which training cuts its patches."""
        cases = self._prepared(resume=True).train_cases
        return [(case.image.tobytes(), case.label.tobytes(), case.locations.tobytes()) for case in cases]

    def read_tokens(self) -> Any:
        """Return the content of the stored variants that training uses."""
        self._samples(self._experiment, self._state.model, None)
        return {name: sha for name, sha in files_below(self.tokens).items() if name.endswith(".npy")}
