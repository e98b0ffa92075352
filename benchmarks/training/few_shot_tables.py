"""Results of ``few_shot.py`` and ``pretraining.py`` as Markdown, JSON, CSV per case, and a figure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from shared.record import Record, with_ending, write_json
from shared.text import table
from training.ablation_cells import Cell, cells_of, difference_to, mean_dice, mean_interval, read_runs
from training.ablation_tables import interval_text
from training.runs import commits_text, machine_text, write_csv

Curve = dict[int, list[Cell]]
"""Cells of each number of training cases, in increasing order; the last arm is the control."""


@dataclass(frozen=True)
class Comparison:
    """How the arms are described and compared.

    Attributes:
        start: What the networks start from.
        script: The benchmark.
        pairs: Arms whose difference is shown: one less the other.
    """

    start: str
    script: str
    pairs: Sequence[Sequence[str]]


def write_tables(runs: Path, stem: Path, arms: Sequence[str], comparison: Comparison) -> str:
    """Write table and figure of all finished runs ``runs/<n> cases/<arm>/seed<n>``; return the Markdown."""
    records, rows = read_runs(runs, arms)
    document = {**asdict(comparison), "cells": records}
    write_json(with_ending(stem, ".json"), document)
    write_csv(with_ending(stem, ".csv"), rows)
    text = markdown(stem.name, document, rows)
    with_ending(stem, ".md").write_text(text, encoding="utf-8")
    plot(curve_of(cells_of(records, rows)), with_ending(stem, ".png"))
    return text


def curve_of(budgets: dict[str, list[Cell]]) -> Curve:
    """Return the cells by number of training cases."""
    return {cases: budgets[name] for cases, name in sorted((int(name.split()[0]), name) for name in budgets)}


def arms_of(curve: Curve) -> list[str]:
    """Return the arms that have a finished cell."""
    return list(dict.fromkeys(cell.name for cells in curve.values() for cell in cells))


def markdown(name: str, document: Record, rows: Sequence[Record]) -> str:
    """Return the page of a curve, from its JSON and CSV: Dice and differences of arms, and the conditions."""
    comparison = Comparison(**{field.name: document[field.name] for field in fields(Comparison)})
    curve = curve_of(cells_of(document["cells"], rows))
    arms, pairs = arms_of(curve), comparison.pairs
    dice = [["training cases", "seeds", *(f"Dice, {arm}" for arm in arms)]]
    differences = [["training cases", *(f"{arm} minus {other}" for arm, other in pairs)]]
    for cases, cells in curve.items():
        texts = {cell.name: interval_text(mean_dice(cell), "{:.4f}") for cell in cells}
        dice.append([str(cases), str(max(len(cell.runs) for cell in cells)), *(texts.get(arm, "") for arm in arms)])
        differences.append([str(cases), *(difference_text(cells, arm, other) for arm, other in pairs)])
    parts = [
        f"# Few-shot curve: {name.replace('_', ' ')}",
        table(dice),
        table(differences),
        f"![Dice against training cases]({name}.png)",
        conditions(curve, comparison),
    ]
    return "\n\n".join(parts) + "\n"


def difference_text(cells: Sequence[Cell], arm: str, other: str) -> str:
    """Return the Dice of an arm less that of another with the same training cases, paired by case and seed.

    It is empty for one and the same arm, and until both have a finished run of one seed.
    """
    of_arm = {cell.name: cell for cell in cells}
    if arm == other or not {arm, other} <= of_arm.keys() or not of_arm[arm].dice.keys() & of_arm[other].dice.keys():
        return ""
    return interval_text(difference_to(of_arm[other], of_arm[arm]), "{:+.4f}")


def conditions(curve: Curve, comparison: Comparison) -> str:
    """Return the conditions that all runs share, and how to read the table."""
    cells = [cell for cells in curve.values() for cell in cells]
    runs, arms = [run for cell in cells for run in cell.runs], {cell.name for cell in cells}
    machines = "; ".join(sorted({machine_text(run) for run in runs}))
    fold = next(text.split("=")[1] for text in runs[0]["settings"] if "data.fold=" in text)
    return (
        f"{comparison.start}; fold {fold} held out, {len(mean_dice(cells[0]))} cases; {runs[0]['steps']} steps per "
        f"run. {'Both' if len(arms) == 2 else 'All'} arms of a seed have the same training cases. Mean Dice over "
        "held-out cases, then over classes, in the "
        "scans' own geometry, and over seeds; 95% bootstrap intervals over the held-out cases (not over seeds); "
        f"differences are paired by case and seed.{unequal_seeds(curve)} {machines}; commit {commits_text(runs)}. "
        f"Measured by `python benchmarks/{comparison.script}`."
    )


def unequal_seeds(curve: Curve) -> str:
    """Return a sentence on the cells that lack seeds which another with the same training cases has."""
    found = []
    for cases, cells in curve.items():
        all_seeds = {seed for cell in cells for seed in cell.dice}
        found += [
            f"{cell.name} with {cases}: {', '.join(map(str, sorted(cell.dice)))}"
            for cell in cells
            if cell.dice.keys() < all_seeds
        ]
    return f" **Fewer seeds than others of the column** (training cases: seeds): {'; '.join(found)}." if found else ""


def plot(curve: Curve, path: Path) -> None:
    """Draw mean Dice with its interval, and every seed as a point, against the number of training cases."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    arms = arms_of(curve)
    for index, arm in enumerate(arms):
        cells = {cases: cell for cases, cells in curve.items() for cell in cells if cell.name == arm}
        middles, lows, highs = zip(*(mean_interval(mean_dice(cell)) for cell in cells.values()), strict=True)
        axes.plot(list(cells), middles, "o-", color=f"C{index}", label=arm)
        if len(arms) == 2:  # bands of more hide each other; the table has their differences
            axes.fill_between(list(cells), lows, highs, color=f"C{index}", alpha=0.15)
        points = [(cases, run["scores"]["mean"]["dice"]) for cases, cell in cells.items() for run in cell.runs]
        axes.plot(*zip(*points, strict=True), ".", color=f"C{index}", markersize=4)
    axes.set_xscale("log")
    axes.minorticks_off()
    axes.set_xticks(list(curve), [str(cases) for cases in curve])
    axes.set_xlabel("training cases")
    axes.set_ylabel("Dice of the held-out cases")
    axes.legend()
    figure.savefig(path, dpi=110)
