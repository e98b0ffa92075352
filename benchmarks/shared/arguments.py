"""Command lines of the benchmarks."""

from __future__ import annotations

import argparse
import os
from collections.abc import Collection, Iterable
from pathlib import Path

from shared.record import RESULTS, TRANSFORMER_CONFIG, cores


def make_parser(description: str | None, results: str) -> argparse.ArgumentParser:
    """Return a parser with ``--out``.

    Args:
        description: Docstring of the command, shown as it is written.
        results: Folder of the results below ``benchmarks/results``.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help=f"folder of the results (benchmarks/results/{results})")
    parser.set_defaults(out=RESULTS / results)
    return parser


def add_runs(parser: argparse.ArgumentParser, runs: str) -> None:
    """Add what the commands that train runs share: ``--config``, ``--threads``, ``--runs`` and settings.

    Args:
        parser: The parser.
        runs: Folder of the run folders below ``runs``.
    """
    parser.add_argument("--config", type=Path, default=TRANSFORMER_CONFIG, help="settings of all runs (%(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="of each run (%(default)s)")
    parser.add_argument("--runs", type=Path, default=Path("runs") / runs, help="run folders (%(default)s)")
    parser.add_argument("settings", nargs="*", metavar="key=value", help="settings of all runs")


def add_threads(parser: argparse.ArgumentParser) -> None:
    """Add ``--threads``, all cores by default."""
    parser.add_argument("--threads", type=int, default=cores(), help="threads (%(default)s)")


def add_quick(parser: argparse.ArgumentParser) -> None:
    """Add ``--quick``, which writes to ``runs/quick`` unless ``--out`` is given (see `quick_folder`)."""
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to check that it works; writes to runs/quick")


def use_quick_folder(args: argparse.Namespace, results: str) -> None:
    """Move the results of ``--quick`` away from the measured ones."""
    if args.quick and args.out == RESULTS / results:
        args.out = Path("runs") / "quick" / results


def words(text: str) -> list[str]:
    """Parse comma-separated words; repeated ones count once."""
    return list(dict.fromkeys(word.strip() for word in text.split(",")))


def integers(text: str) -> list[int]:
    """Parse comma-separated integers."""
    return [int(number) for number in text.split(",")]


def size(text: str) -> tuple[int, int, int]:
    """Parse three comma-separated integers, D,H,W."""
    depth, height, width = integers(text)
    return depth, height, width


def check_choices(
    parser: argparse.ArgumentParser, option: str, values: Iterable[str], choices: Collection[str]
) -> None:
    """End with a message if a value is not one of the choices."""
    if unknown := [value for value in values if value not in choices]:
        parser.error(f"{option}: unknown {', '.join(unknown)}; choices: {', '.join(choices)}")


def use_threads(threads: int) -> None:
    """Set the number of threads of torch, in this process and in its children, before torch is imported."""
    os.environ["OMP_NUM_THREADS"] = str(threads)
    import torch

    torch.set_num_threads(threads)
