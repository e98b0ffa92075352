"""The grid of ``adaptation.py``: cells by number of training cases, encoder, adaptation and seed."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

PER_SLICE = ["model.aggregator=none", "model.adjacent_slices=1"]
ADAPTATIONS: dict[str, list[str]] = {
    "linear": ["model.adaptation=frozen", "model.decoder=linear", *PER_SLICE],
    "unet2d": ["model.adaptation=frozen", "model.decoder=unet2d", *PER_SLICE],
    "frozen": ["model.adaptation=frozen"],
    "lora": ["model.adaptation=lora"],
    "bitfit": ["model.adaptation=bitfit"],
    "full": ["model.adaptation=full"],
}
"""Settings of each arm. ``linear`` and ``unet2d`` are the protocol of the study; the others have volseg's decoder."""


class Encoder(NamedTuple):
    """An encoder with its initial weights, given as ``encoder:weights``."""

    name: str
    weights: str

    @classmethod
    def parse(cls, text: str) -> Encoder:
        """Parse ``dinov2_s14:official``, ``tiny:random`` or ``dinov2_b14:FILE``."""
        name, colon, weights = text.partition(":")
        if not (name and colon and weights):
            raise argparse.ArgumentTypeError(f"{text}: expected encoder:weights, such as dinov2_s14:official")
        return cls(name, weights)

    @property
    def label(self) -> str:
        """Name in tables and folders: the encoder, and its weights without folder and suffix."""
        weights = Path(self.weights).stem
        return self.name if weights == self.name else f"{self.name} {weights}"


@dataclass(frozen=True)
class Job:
    """One cell of the grid: a training run."""

    encoder: Encoder
    adaptation: str
    cases: int
    seed: int

    @property
    def arm(self) -> str:
        """Name of encoder and adaptation."""
        return f"{self.encoder.label}, {self.adaptation}"

    @property
    def settings(self) -> list[str]:
        """Settings of the run, beside those that all cells share."""
        network = [f"model.encoder={self.encoder.name}", f"model.weights={self.encoder.weights}"]
        return [*network, *ADAPTATIONS[self.adaptation], f"data.shots={self.cases}", f"seed={self.seed}"]

    def folder(self, root: Path) -> Path:
        """Return the run folder."""
        return root / f"{self.cases} cases" / self.arm.replace(" ", "_") / f"seed{self.seed}"


def jobs_of(
    encoders: Sequence[Encoder], adaptations: Sequence[str], shots: Sequence[int], seeds: Sequence[int]
) -> list[Job]:
    """Return all cells; the cells of a seed and of a number of cases follow each other and have the same cases."""
    return [
        Job(encoder, adaptation, cases, seed)
        for seed in seeds
        for cases in dict.fromkeys(shots)
        for encoder in encoders
        for adaptation in adaptations
    ]


def count_of(text: str, available: int) -> int:
    """Return a number of cases, given as a number or as a percentage of the training cases (at least one)."""
    if text.endswith("%"):
        return max(1, round(float(text[:-1]) / 100 * available))
    return int(text)


def command_of(arguments: Sequence[str], number: int) -> str:
    """Return the command that runs one cell: the given command with ``--cell`` instead of ``--list``."""
    kept = [argument for argument in arguments if argument != "--list"]
    return shlex.join(["python", *kept[:1], "--cell", str(number), *kept[1:]])
