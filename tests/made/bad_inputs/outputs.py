"""Folders and files that cannot be written, and files that are not replaced."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tests.made.bad_inputs.cases import BadInput, command
from tests.made.bad_inputs.datasets import made
from tests.made.bad_inputs.settings import demo


def train(prepare: Callable[[], object], *arguments: str) -> Callable[[], str]:
    """Return an attempt to train, after something was written."""

    def attempt() -> str:
        made(2)
        prepare()
        return command("train", "--config", demo(), "data.root=data", "data.workers=0", *arguments)

    return attempt


def file(name: str, text: str = "notes") -> Callable[[], object]:
    """Return a function that writes a file."""

    def write() -> None:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(text)

    return write


def refused(name: str, *arguments: str) -> Callable[[], str]:
    """Return an attempt to run a command on a data set, after a file was written."""

    def attempt() -> str:
        made(2)
        file(name)()
        return command(*arguments)

    return attempt


OUTPUTS = (
    BadInput("A run folder inside of a file", "runs", train(file("runs"), "output=runs/a")),
    BadInput("A folder that holds a run already", "runs/a", train(file("runs/a/metrics.jsonl"), "output=runs/a")),
    BadInput("A run folder with other files", "runs", train(file("runs/thesis.txt"), "output=runs")),
    BadInput("`--resume` of a folder without a run", "runs", lambda: command("train", "--resume", "runs/b")),
    BadInput("A plan that would replace another file", "notes.txt",
             refused("notes.txt", "plan", "data", "--workers", "0", "--out", "notes.txt")),
    BadInput("Findings that would replace another file", "notes.txt",
             refused("notes.txt", "plan", "data", "--workers", "0", "--check-only", "--out", "notes.txt")),
    BadInput("A converted data set in a folder that is not empty", "raw",
             refused("raw/notes.txt", "convert", "data", "raw", "--workers", "0")),
    BadInput("Scores inside of a file", "notes.txt",
             refused("notes.txt", "evaluate", "--pred", "data/labelsTr", "--ref", "data/labelsTr", "--out",
                     "notes.txt/scores", "--no-report")),
    BadInput("Generated scans in the folder of a data set", "data",
             refused("data/notes.txt", "phantom", "data", "--train", "1", "--test", "0")),
    BadInput("A cache that is not there", "cache", lambda: command("cache", "cache")),
    BadInput("A negative number of days", "--older-than",
             lambda: command("cache", "--older-than=-3", "--remove", "all")),
)  # fmt: skip
