"""Commands killed again and again at random moments and started again, compared with an uninterrupted run."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from shared.text import say
from trials.processes import Command, names_below
from trials.samples import (
    finish,
    make_data,
    make_model,
    make_scans,
    masks_below,
    predicting,
    training,
    training_result,
)


@dataclass(frozen=True)
class Phase:
    """A part of a command's life in which it is killed.

    Attributes:
        name: Name.
        begins: Whether it has begun, by what the command printed and the folder of the run.
        lasts_s: The kill comes up to this long after the beginning.
    """

    name: str
    begins: Callable[[Command, Path], bool]
    lasts_s: float


def anything(folder: str, pattern: str) -> Callable[[Command, Path], bool]:
    """Return a test whether a folder below the run's holds a matching name."""
    return lambda _, root: next((root / folder).glob(pattern), None) is not None


def newer(folder: str) -> Callable[[Command, Path], bool]:
    """Return a test whether a folder has changed during the life."""
    began = time.time()
    return lambda _, root: (root / folder).is_dir() and (root / folder).stat().st_mtime > began


def printed(text: str) -> Callable[[Command, Path], bool]:
    """Return a test whether the command has printed a text."""
    return lambda command, _: text in command.text


def training_phases() -> dict[str, Phase]:
    """Return the phases of training; the moments of files are those of their temporary names."""
    phases = (
        Phase("start-up", lambda *_: True, 3.0),
        Phase("preprocessing", anything("cache", "*/*/.*tmp"), 0.03),
        Phase("steps", printed("parameters:"), 2.0),
        Phase("checkpoint", anything("run/checkpoint", ".*tmp"), 0.03),
        Phase("model file", anything("run", ".model*tmp"), 0.02),
        Phase("prediction", newer("run/validation/masks"), 0.4),
        Phase("evaluation", newer("run/validation/scores"), 0.5),
    )
    return {phase.name: phase for phase in phases}


TRAINING_KILLS = (
    *("start-up", "preprocessing", "preprocessing", "preprocessing", "start-up"),
    *("steps", "checkpoint", "steps", "checkpoint", "start-up", "steps", "checkpoint", "steps", "checkpoint"),
    *("steps", "checkpoint", "steps", "checkpoint", "model file", "model file", "start-up"),
    *("prediction", "prediction", "evaluation", "evaluation"),
)
"""The phases in which one run is killed, in this order."""


def kill_train(work: Path, count: int, seed: int) -> dict[str, Any]:
    """Kill training, resume it each time, and compare weights, log, masks, scores and files.

    Args:
        work: Empty folder.
        count: Kills.
        seed: Seed of the moments.
    """
    data = make_data(work / "data")
    reference = work / "reference"
    reference.mkdir()
    steps = 48
    finish(training(data, reference / "run", reference / "cache", steps=steps), reference)
    tally = Tally(np.random.default_rng(seed))
    number = 0
    while tally.kills < count:
        share = min(count - tally.kills, len(TRAINING_KILLS))
        chosen = [TRAINING_KILLS[place * len(TRAINING_KILLS) // share] for place in range(share)]
        root = work / f"run_{number}"
        root.mkdir()
        arguments = training(data, root / "run", root / "cache", steps=steps)
        for name in chosen:
            tally.kill(arguments, root, training_phases()[name])
        tally.finish(arguments, root)
        expected = training_result(reference / "run", reference / "cache")
        tally.compare(root, expected, training_result(root / "run", root / "cache"), reference, ("run", "cache"))
        say(f"kill-train: {tally.kills} kills")
        number += 1
    return tally.result()


def kill_predict(work: Path, count: int, seed: int, scans: int = 300) -> dict[str, Any]:
    """Kill prediction of a folder, start it again each time, and compare masks, records and files.

    Args:
        work: Empty folder.
        count: Kills.
        seed: Seed of the moments.
        scans: Scans of the folder.
    """
    model, images = make_model(work / "model.safetensors"), make_scans(work / "scans", scans)
    reference = work / "reference"
    reference.mkdir()
    finish(predicting(model, images, reference / "masks"), reference)
    rng = np.random.default_rng(seed)
    tally = Tally(rng)
    number = 0
    while tally.kills < count:
        root = work / f"run_{number}"
        root.mkdir()
        arguments, left = predicting(model, images, root / "masks"), count - tally.kills
        for _ in range(min(left, max(1, scans // 8))):
            if not tally.kill(arguments, root, prediction_phase(rng, root)):
                break
        tally.finish(arguments, root)
        again = Command(arguments, root).wait()
        found = re.search(r"(\d+) predicted, (\d+) skipped", again.text)
        recorded = found is not None and found.groups() == ("0", str(scans)) and again.code == 0
        tally.check(recorded, f"{root.name}: not every case is recorded: {again.last_lines}")
        tally.compare(root, masks_below(reference / "masks"), masks_below(root / "masks"), reference, ("masks",))
        say(f"kill-predict: {tally.kills} kills")
        number += 1
    return tally.result()


def prediction_phase(rng: np.random.Generator, root: Path) -> Phase:
    """Return a moment of prediction: start-up (1 of 10), any (4), or just after a mask got its name (5)."""
    choice = rng.random()
    if choice < 0.1:
        return Phase("start-up", lambda *_: True, 2.0)
    first = len(names_below(root / "masks"))

    def writes(_: Command, root: Path) -> bool:
        return len(names_below(root / "masks")) != first

    if choice < 0.5:
        return Phase("prediction", writes, 0.15)
    more = masks_in(root) + int(rng.integers(1, 10))

    def has_mask(_: Command, root: Path) -> bool:
        return masks_in(root) >= more

    return Phase("mask written", has_mask, 0.004)


def masks_in(root: Path) -> int:
    """Return the number of masks."""
    return sum(name.endswith(".nii.gz") and name[0] != "." for name in names_below(root / "masks"))


class Tally:
    """What became of all lives of a trial.

    Args:
        rng: Draws the time of each kill.
    """

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng
        self._phases: Counter[str] = Counter()
        self._seconds: list[float] = []
        self._children = 0
        self._finished = self._identical = 0
        self._problems: list[str] = []

    @property
    def kills(self) -> int:
        """Kills so far."""
        return sum(self._phases.values())

    def kill(self, arguments: Sequence[object], root: Path, phase: Phase) -> bool:
        """Start a command and kill it in a phase; return whether it was killed."""
        command = Command(arguments, root)
        life = command.kill_at(lambda: phase.begins(command, root), float(self._rng.uniform(0, phase.lasts_s)))
        if life.code is None:
            self._phases[phase.name] += 1
        self.check(not life.refused, f"{root.name}: refused, code {life.code}: {life.last_lines}")
        self.check(not life.children, f"{root.name}: {life.children} children lived on after a kill in {phase.name}")
        self._seconds.append(life.seconds)
        return life.code is None

    def finish(self, arguments: Sequence[object], root: Path) -> None:
        """Run the command to its end."""
        life = Command(arguments, root).wait()
        self.check(not life.refused, f"{root.name}: refused at last, code {life.code}: {life.last_lines}")
        self._finished += life.code == 0

    def compare(
        self, root: Path, expected: dict[str, Any], found: dict[str, Any], reference: Path, folders: Sequence[str]
    ) -> None:
        """Compare results, and the names of all files, with those of the uninterrupted run."""
        differing = sorted(key for key in {*expected, *found} if expected.get(key) != found.get(key))
        self._identical += not differing
        self.check(not differing, f"{root.name}: different: {', '.join(differing[:5])} ({len(differing)})")
        for folder in folders:
            names, usual = names_below(root / folder), names_below(reference / folder)
            self.check(
                names <= usual, f"{root.name}: left over: {', '.join(sorted(names - usual)[:5])} ({len(names - usual)})"
            )
            self.check(usual <= names, f"{root.name}: missing: {', '.join(sorted(usual - names)[:5])}")

    def check(self, right: bool, problem: str) -> None:
        """Note a problem."""
        if not right:
            self._problems.append(problem)

    def result(self) -> dict[str, Any]:
        """Return counts and problems."""
        return {
            "trials": self.kills,
            "kills by phase": dict(self._phases),
            "finished runs": self._finished,
            "identical runs": self._identical,
            "longest_s": round(max(self._seconds, default=0), 1),
            "failed": len(self._problems),
            "problems": self._problems[:20],
        }
