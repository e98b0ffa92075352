"""Commands on a disk that fills up: how they end, what earlier files become, and whether a rerun finishes."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from shared.text import say
from trials.processes import Command, Life, files_below, names_below
from trials.samples import finish, make_data, make_model, make_scans, masks_below, predicting, training, training_result

PAGE = 4096
ROOM = 512 << 20
"""Size of the disk when there is space again."""
STEPS = 8
BEGUN = "written before the disk was full"


def full_disk(work: Path, count: int, seed: int) -> dict[str, Any]:
    """Run commands on disks of random sizes, then make space and run them again.

    Args:
        work: Empty folder.
        count: Trials of all commands together.
        seed: Seed of the sizes.
    """
    trial = FullDisk(work)
    rng = np.random.default_rng(seed)
    results: dict[str, Any] = {name: {"trials": 0, "failed": 0, "codes": {}} for name in trial.commands}
    problems: list[str] = []
    for number in range(count):
        name = list(trial.commands)[number % len(trial.commands)]
        code, wrong = trial.run(name, float(rng.uniform(0, 1)))
        one = results[name]
        one["trials"] += 1
        one["failed"] += bool(wrong)
        one["codes"][str(code)] = one["codes"].get(str(code), 0) + 1
        problems += [f"{name}: {problem}" for problem in wrong]
        say(f"full-disk: {name}: code {code}{', failed' if wrong else ''}")
    failed = sum(one["failed"] for one in results.values())
    return {"trials": count, "failed": failed, "kinds": results, "problems": problems[:20]}


class FullDisk:
    """Commands that write to one disk, and their results on a large one.

    Args:
        work: Empty folder.

    Attributes:
        commands: Name -> the command that writes into a folder.
    """

    def __init__(self, work: Path) -> None:
        self._work = work
        data, model = make_data(work / "data"), make_model(work / "model.safetensors")
        scans = make_scans(work / "scans", 20)
        masks = work / "masks"
        finish(predicting(model, scans, masks), work)
        reference = work / "reference"
        reference.mkdir()
        for mask in sorted(masks.glob("*.nii.gz")):
            (reference / mask.name).write_bytes(mask.read_bytes())
        self.commands: dict[str, Callable[[Path], Sequence[str]]] = {
            "predict": lambda disk: predicting(model, scans, disk / "out", "--uncertainty"),
            "train": lambda disk: training(data, disk / "out" / "run", disk / "out" / "cache", steps=STEPS),
            "plan": lambda disk: ["plan", str(data), "--out", str(disk / "out" / "plan.json")],
            "evaluate": lambda disk: [
                *("evaluate", "--pred", str(masks), "--ref", str(reference)),
                *("--dataset", str(labels), "--out", str(disk / "out")),
            ],
        }
        labels = work / "labels.json"
        labels.write_text('{"labels": {"background": 0, "organ 1": 1, "organ 2": 2}}', encoding="utf-8")
        self._wanted, self._bytes, self._names = {}, {}, {}
        for name, command in self.commands.items():
            place = work / f"large_{name}"
            place.mkdir()
            finish(list(command(place)), work)
            self._wanted[name], self._names[name] = results_of(name, place / "out"), names_below(place / "out")
            self._bytes[name] = sum(
                -(-path.stat().st_size // PAGE) * PAGE for path in place.rglob("*") if path.is_file()
            )

    def run(self, name: str, fraction: float) -> tuple[int | None, list[str]]:
        """Run a command on a disk that holds a fraction of its results, then with space.

        Returns:
            The first exit code, and what is wrong.
        """
        problems = []
        with small_disk(self._work / "disk", PAGE + int(fraction * self._bytes[name]) // PAGE * PAGE) as (
            disk,
            enlarge,
        ):
            (disk / "out").mkdir()
            earlier = disk / "out" / ("plan.json" if name == "plan" else "earlier.txt")
            earlier.write_text(BEGUN, encoding="utf-8")
            life = Command(self.commands[name](disk), self._work).wait()
            problems += self._wrong_end(name, life, disk / "out")
            if life.code != 0 and earlier.read_text(encoding="utf-8") != BEGUN:
                problems.append(f"{earlier.name} was changed")
            if name != "plan":
                earlier.unlink()
            enlarge()
            again = Command(self.commands[name](disk), self._work).wait()
            if again.code != 0:
                problems.append(f"not finished with space, code {again.code}: {again.last_lines}")
            else:
                found, names = results_of(name, disk / "out"), names_below(disk / "out")
                problems += [
                    f"different: {key}" for key, value in self._wanted[name].items() if found.get(key) != value
                ]
                problems += [f"left over: {one}" for one in sorted(names - self._names[name])]
        return life.code, problems[:3]

    def _wrong_end(self, name: str, life: Life, out: Path) -> list[str]:
        """Return what is wrong with the end of a command on a full disk: its exit code, its message, the files."""
        problems = [f"left over: {path.name}" for path in out.rglob(".*") if path.name.endswith("tmp")]
        if life.code == 0:
            return problems if results_of(name, out) == self._wanted[name] else ["exit code 0 with other results"]
        silent = "error" not in life.text and "failed" not in life.text
        codes = (1, 2) if name == "predict" else (2,)  # only a prediction has cases that fail alone
        if life.code not in codes or silent or "Traceback" in life.text:
            problems.append(f"code {life.code}: {life.last_lines}")
        return problems


def results_of(name: str, out: Path) -> dict[str, Any]:
    """Return the results of a command that must not depend on interruptions; nothing if they are not complete."""
    try:
        if name == "train":
            return training_result(out / "run", out / "cache")
        if name == "predict":
            return masks_below(out)
        return {key: sha for key, sha in files_below(out).items() if key.endswith(("plan.json", "cases.csv"))}
    except FileNotFoundError:
        return {}


@contextmanager
def small_disk(place: Path, size: int) -> Iterator[tuple[Path, Callable[[], None]]]:
    """Mount a tmpfs, which needs root.

    Args:
        place: Where.
        size: Its size in bytes.

    Yields:
        The folder, and a function that makes space.
    """
    place.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)], check=True)
    try:
        yield place, lambda: _remount(place)
    finally:
        subprocess.run(["umount", str(place)], check=True)


def _remount(place: Path) -> None:
    subprocess.run(["mount", "-o", f"remount,size={ROOM}", str(place)], check=True)
