"""Results of ``adaptation.py`` as Markdown, JSON, CSV per case, and a figure."""

from __future__ import annotations

import math
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from shared.record import Record, portable_argument, with_ending, write_json
from shared.text import table
from training.ablation_cells import Cell, cells_of, mean_dice, mean_interval, read_runs
from training.ablation_tables import interval_text
from training.few_shot_tables import Curve, arms_of, curve_of, difference_text, unequal_seeds
from training.runs import commits_text, machine_text, mean_of, write_csv


def write_tables(runs: Path, stem: Path, arms: Sequence[str]) -> str:
    """Write tables and figure of all finished cells ``runs/<n> cases/<arm>/seed<n>``; return the Markdown."""
    records, rows = read_runs(runs, arms)
    command = ["python", *(portable_argument(argument) for argument in sys.argv)]
    document = {"command": command, "cells": records}
    write_json(with_ending(stem, ".json"), document)
    write_csv(with_ending(stem, ".csv"), rows)
    text = markdown(stem.name, document, rows)
    with_ending(stem, ".md").write_text(text, encoding="utf-8")
    plot(curve_of(cells_of(records, rows)), with_ending(stem, ".png"))
    return text


def markdown(name: str, document: Record, rows: Sequence[Record]) -> str:
    """Return the page of a grid, from its JSON and CSV."""
    curve = curve_of(cells_of(document["cells"], rows))
    first = arms_of(curve)[0]
    parts = [
        f"# Adaptation: {name.replace('_', ' ')}",
        "## Dice per case",
        arm_table(curve, lambda cell, _: interval_text(mean_dice(cell), "{:.4f}")),
        f"## Dice per case, minus {first}",
        arm_table(curve, lambda cell, cells: difference_text(cells, cell.name, first)),
        "## Dice of all voxels pooled, as in the study",
        arm_table(curve, lambda cell, _: pooled_text(cell)),
        f"![Dice against training cases]({name}.png)",
        conditions(curve, document["command"]),
    ]
    return "\n\n".join(parts) + "\n"


def arm_table(curve: Curve, text: Callable[[Cell, list[Cell]], str]) -> str:
    """Return a row per arm and a column per number of training cases; cells that are not finished are empty."""
    rows = [["encoder, adaptation", "trained parameters", *(f"cases: {cases}" for cases in curve)]]
    for arm in arms_of(curve):
        finished = {cases: (cell, cells) for cases, cells in curve.items() for cell in cells if cell.name == arm}
        trained = next(iter(finished.values()))[0].runs[0]["trained_parameters"]
        rows.append([arm, f"{trained:,}", *(text(*finished[cases]) if cases in finished else "" for cases in curve)])
    return table(rows)


def pooled_text(cell: Cell) -> str:
    """Return the pooled Dice of a cell, the mean over its seeds."""
    pooled = [run["pooled_dice"]["mean"] for run in cell.runs if "pooled_dice" in run]
    mean = mean_of(value for value in pooled if value is not None)
    return "" if math.isnan(mean) else f"{mean:.4f}"


def conditions(curve: Curve, command: Sequence[str]) -> str:
    """Return the conditions that all cells share, and how to read the tables."""
    cells = [cell for cells in curve.values() for cell in cells]
    runs = [run for cell in cells for run in cell.runs]
    machines = "; ".join(sorted({machine_text(run) for run in runs}))
    dates = ", ".join(sorted({run["date"][:10] for run in runs}))
    fold = next(text.split("=")[1] for text in runs[0]["settings"] if "data.fold=" in text)
    seeds = ", ".join(map(str, sorted({run["seed"] for run in runs})))
    return (
        f"{len(runs)} finished cells, seeds {seeds}; fold {fold} held out, {len(mean_dice(cells[0]))} cases; "
        f"{runs[0]['steps']} steps per cell. `linear` and `unet2d`: frozen encoder, one slice at a time, no raw "
        "voxels, as in the study (arXiv 2312.02366); the others have volseg's decoder. Dice per case: mean over "
        "held-out cases, then over classes, in the scans' own geometry, and over seeds; 95% bootstrap intervals over "
        "the held-out cases (not over seeds); differences are paired by case and seed. Pooled: the voxels of all cases "
        "counted together per class, then the mean over classes and seeds; the study's code counts so, on slices "
        f"resized to the input of the network.{unequal_seeds(curve)}\n\n"
        f"{machines}; {dates}, commit {commits_text(runs)}: `{shlex.join(command)}`"
    )


def plot(curve: Curve, path: Path) -> None:
    """Draw Dice per case with its interval against the number of training cases, a panel per encoder."""
    from matplotlib.figure import Figure

    arms = [(arm, *arm.rsplit(", ", 1)) for arm in arms_of(curve)]
    encoders = list(dict.fromkeys(encoder for _, encoder, _ in arms))
    adaptations = list(dict.fromkeys(adaptation for *_, adaptation in arms))
    figure = Figure(figsize=(5 * len(encoders), 4), layout="constrained")
    panels: Any = figure.subplots(1, len(encoders), sharey=True, squeeze=False)[0]
    for arm, encoder, adaptation in arms:
        axes, color = panels[encoders.index(encoder)], f"C{adaptations.index(adaptation)}"
        cells = {cases: cell for cases, found in curve.items() for cell in found if cell.name == arm}
        middles, lows, highs = zip(*(mean_interval(mean_dice(cell)) for cell in cells.values()), strict=True)
        axes.plot(list(cells), middles, "o-", color=color, label=adaptation)
        axes.fill_between(list(cells), lows, highs, color=color, alpha=0.1)
    for axes, encoder in zip(panels, encoders, strict=True):
        axes.set_title(encoder)
        axes.set_xscale("log")
        axes.set_xticks(list(curve), [str(cases) for cases in curve])
        axes.minorticks_off()
        axes.set_xlabel("training cases")
    panels[0].set_ylabel("Dice of the held-out cases")
    panels[0].legend()
    figure.savefig(path, dpi=110)
