"""Two processes in one folder: what is refused, what finishes, and whether the results are those of one alone."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from shared.text import say
from trials.processes import Command, Life
from trials.samples import finish, make_data, make_model, make_scans, masks_below, predicting, training, training_result

STEPS = 16
SHARDS = 3


def two_at_once(work: Path, count: int, seed: int) -> dict[str, Any]:
    """Start processes in one folder at the same time.

    Args:
        work: Empty folder.
        count: Repetitions of each pairing, with other delays.
        seed: Seed of the delays.
    """
    pairs = Pairings(work, np.random.default_rng(seed))
    trials = {
        "two trainings, one run folder": pairs.trainings_in_one_folder,
        "two trainings, one cache": pairs.trainings_with_one_cache,
        "two models, one folder of masks": pairs.models_in_one_folder,
        "one model twice, one folder of masks": pairs.same_prediction_twice,
        f"{SHARDS} shards, one folder of masks": pairs.shards,
        "after a kill of the first": pairs.after_a_kill,
    }
    results: dict[str, Any] = {}
    problems: list[str] = []
    for name, trial in trials.items():
        wrong = []
        for number in range(count):
            root = work / f"{len(results)}_{number}"
            root.mkdir()
            wrong += [f"{name}: {problem}" for problem in trial(root)[:1]]
        results[name] = {"trials": count, "failed": len(wrong)}
        problems += wrong
        say(f"two-at-once: {name}: {len(wrong)} of {count} failed")
    total = sum(one["trials"] for one in results.values())
    return {"trials": total, "failed": len(problems), "kinds": results, "problems": problems[:20]}


class Pairings:
    """The pairs of commands, and the results of each command alone.

    Each trial returns what is wrong: nothing, or sentences.
    """

    def __init__(self, work: Path, rng: np.random.Generator) -> None:
        self._rng = rng
        self._data = make_data(work / "data")
        self._scans = make_scans(work / "scans", 40)
        self._models = [make_model(work / f"model_{seed}.safetensors", seed) for seed in (0, 1)]
        alone = work / "alone"
        alone.mkdir()
        finish(training(self._data, alone / "run", alone / "cache", steps=STEPS), alone)
        self._trained = training_result(alone / "run", alone / "cache")
        self._masks = []
        for number, model in enumerate(self._models):
            finish(predicting(model, self._scans, alone / f"masks_{number}"), alone)
            self._masks.append(masks_below(alone / f"masks_{number}"))

    def trainings_in_one_folder(self, root: Path) -> list[str]:
        """Refuse one of the two and finish the other."""
        command = training(self._data, root / "run", root / "cache", steps=STEPS)
        return [*self._one_refused(self._together([command] * 2, root)), *self._training_differs(root / "run", root)]

    def trainings_with_one_cache(self, root: Path) -> list[str]:
        """Finish both."""
        places = [root / side / "run" for side in "ab"]
        for place in places:
            place.parent.mkdir()
        lives = self._together([training(self._data, place, root / "cache", steps=STEPS) for place in places], root)
        problems = [f"code {life.code}: {life.last_lines}" for life in lives if life.code != 0]
        return problems or [text for place in places for text in self._training_differs(place, root)]

    def models_in_one_folder(self, root: Path) -> list[str]:
        """Refuse one of the two; the masks are those of the other alone."""
        lives = self._together([predicting(model, self._scans, root / "masks") for model in self._models], root)
        first = next((number for number, life in enumerate(lives) if life.code == 0), 0)
        return [*self._one_refused(lives), *self._masks_differ(root, first)]

    def same_prediction_twice(self, root: Path) -> list[str]:
        """Finish one; the other may be refused."""
        lives = self._together([predicting(self._models[0], self._scans, root / "masks")] * 2, root)
        problems = [] if any(life.code == 0 for life in lives) else [f"none finished: {lives[0].last_lines}"]
        problems += [f"code {life.code}: {life.last_lines}" for life in lives if life.code not in (0, 2)]
        return problems + self._masks_differ(root, 0)

    def shards(self, root: Path) -> list[str]:
        """Finish all."""
        shares = [f"--shard={number}/{SHARDS}" for number in range(SHARDS)]
        lives = self._together(
            [predicting(self._models[0], self._scans, root / "masks", share) for share in shares], root
        )
        problems = [f"code {life.code}: {life.last_lines}" for life in lives if life.code != 0]
        return problems + self._masks_differ(root, 0)

    def after_a_kill(self, root: Path) -> list[str]:
        """Finish a second prediction in the folder of one that was killed: its lock is stale."""
        command = predicting(self._models[0], self._scans, root / "masks")
        first = Command(command, root)
        first.kill_at(lambda: any((root / "masks").glob("*.nii.gz")), float(self._rng.uniform(0, 0.2)))
        second = Command(command, root).wait()
        return ([] if second.code == 0 else [f"code {second.code}: {second.last_lines}"]) + self._masks_differ(root, 0)

    def _together(self, commands: Sequence[list[str]], root: Path) -> list[Life]:
        """Run commands that start up to half a second apart."""
        running = []
        for command in commands:
            running.append(Command(command, root))
            time.sleep(float(self._rng.uniform(0, 0.5)))
        return [command.wait() for command in running]

    def _one_refused(self, lives: Sequence[Life]) -> list[str]:
        codes = sorted(life.code or 0 for life in lives)
        if codes != [0, 2]:
            return [f"exit codes {codes[0]} and {codes[1]}, expected 0 and 2: {lives[-1].last_lines}"]
        refused = next(life for life in lives if life.code == 2)
        return [] if "error:" in refused.text and "Traceback" not in refused.text else [refused.last_lines]

    def _training_differs(self, run: Path, root: Path) -> list[str]:
        if not (run / "validation" / "scores" / "cases.csv").exists():
            return ["no run was finished"]
        found = training_result(run, root / "cache")
        differing = [name for name, value in self._trained.items() if found[name] != value]
        return [f"different: {', '.join(differing)}"] if differing else []

    def _masks_differ(self, root: Path, model: int) -> list[str]:
        found = masks_below(root / "masks")
        differing = sorted(name for name, sha in self._masks[model].items() if found.get(name) != sha)
        return [f"{len(differing)} masks of {len(self._masks[model])} differ or are missing"] if differing else []
