"""Train on a data set, then predict and score the held-out cases.

python examples/train_and_score.py DATASET OUTPUT [key=value ...]
"""

from __future__ import annotations

import sys

import volseg


def show(stage: str, done: int, total: int | None) -> None:
    """Print the progress of each stage."""
    print(f"\r{stage}: {done} of {total if total is not None else '?'}", end="" if done != total else "\n")


def main(dataset: str, output: str, *overrides: str) -> int:
    """Train a small network from random weights for a minute; other settings are overrides."""
    config = {
        "output": output,
        "data": {"root": dataset},
        "model": {"encoder": "tiny", "weights": "random"},
        "train": {"max_minutes": 1},
    }
    result = volseg.train(config, overrides, progress=show)
    print(result.scores.table)
    print(f"mean Dice {result.scores.summary['methods'][result.folder.name]['headline']['dice']['mean']:.3f}")
    print(f"model: {result.model_file}")
    return result.scores.exit_code


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    sys.exit(main(*sys.argv[1:]))
