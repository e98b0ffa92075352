"""Results of ``few_shot.py`` and ``pretraining.py`` as Markdown, JSON, CSV per case, and a figure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from shared.record import write_json
from shared.text import table
from training.ablation_cells import Cell, cells_of, difference_to, mean_dice, mean_interval, read_runs
from training.ablation_tables import interval_text
from training.runs import machine_text, write_csv

Curve = dict[int, list[Cell]]
"""Cells of each number of training cases, in increasing order; the last arm is the control."""


@dataclass(frozen=True)
class Comparison:
    """How the arms are described and compared.

    Attributes:
        start: What the networks start from.
        script: The benchmark.
        pairs: Arms whose difference is shown: one less the other; ``None`` shows the first less the last.
    """

    start: str = "Random weights"
    script: str = "few_shot.py"
    pairs: tuple[tuple[str, str], ...] | None = None


FEW_SHOT = Comparison()


def write_tables(runs: Path, stem: Path, arms: Sequence[str], comparison: Comparison = FEW_SHOT) -> str:
    """Write table and figure of all finished runs ``runs/<n> cases/<arm>/seed<n>``; return the Markdown."""
    records, rows = read_runs(runs, arms)
    write_json(stem.with_suffix(".json"), records)
    write_csv(stem.with_suffix(".csv"), rows)
    curve = curve_of(cells_of(records, rows))
    text = markdown(stem.name, curve, comparison)
    stem.with_suffix(".md").write_text(text, encoding="utf-8")
    plot(curve, stem.with_suffix(".png"))
    return text


def curve_of(budgets: dict[str, list[Cell]]) -> Curve:
    """Return the cells by number of training cases."""
    return {cases: budgets[name] for cases, name in sorted((int(name.split()[0]), name) for name in budgets)}


def markdown(name: str, curve: Curve, comparison: Comparison = FEW_SHOT) -> str:
    """Return a row per number of cases, with the differences of arms, and the conditions."""
    arms = [cell.name for cell in next(iter(curve.values()))]
    pairs = comparison.pairs or ((arms[0], arms[-1]),)
    differences = [f"{arm} minus {other}" for arm, other in pairs]
    rows = [["training cases", "seeds", *(f"Dice, {arm}" for arm in arms), *differences]]
    for cases, cells in curve.items():
        dice, of_arm = [interval_text(mean_dice(cell), "{:.4f}") for cell in cells], {cell.name: cell for cell in cells}
        texts = [interval_text(difference_to(of_arm[other], of_arm[arm]), "{:+.4f}") for arm, other in pairs]
        rows.append([str(cases), str(len(cells[0].runs)), *dice, *texts])
    title = f"# Few-shot curve: {name.replace('_', ' ')}"
    return (
        f"{title}\n\n{table(rows)}\n\n![Dice against training cases]({name}.png)\n\n{conditions(curve, comparison)}\n"
    )


def conditions(curve: Curve, comparison: Comparison) -> str:
    """Return the conditions that all runs share, and how to read the table."""
    cells = [cell for cells in curve.values() for cell in cells]
    runs, arms = [run for cell in cells for run in cell.runs], {cell.name for cell in cells}
    machines = "; ".join(sorted({machine_text(run) for run in runs}))
    commits = ", ".join(sorted({str(run["commit"])[:10] for run in runs}))
    fold = next(text.split("=")[1] for text in runs[0]["settings"] if "data.fold=" in text)
    return (
        f"{comparison.start}; fold {fold} held out, {len(mean_dice(cells[0]))} cases; {runs[0]['steps']} steps per "
        f"run. {'Both' if len(arms) == 2 else 'All'} arms of a seed have the same training cases. Mean Dice over "
        "held-out cases, then over classes, in the "
        "scans' own geometry, and over seeds; 95% bootstrap intervals over the held-out cases (not over seeds); "
        f"differences are paired by case and seed. {machines}; commit {commits}. Measured by "
        f"`python benchmarks/{comparison.script}`."
    )


def plot(curve: Curve, path: Path) -> None:
    """Draw mean Dice with its interval, and every seed as a point, against the number of training cases."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for index, arm in enumerate(cell.name for cell in next(iter(curve.values()))):
        cells = {cases: cell for cases, cells in curve.items() for cell in cells if cell.name == arm}
        middles, lows, highs = zip(*(mean_interval(mean_dice(cell)) for cell in cells.values()), strict=True)
        axes.plot(list(cells), middles, "o-", color=f"C{index}", label=arm)
        axes.fill_between(list(cells), lows, highs, color=f"C{index}", alpha=0.15)
        points = [(cases, run["scores"]["mean"]["dice"]) for cases, cell in cells.items() for run in cell.runs]
        axes.plot(*zip(*points, strict=True), ".", color=f"C{index}", markersize=4)
    axes.set_xscale("log")
    axes.set_xticks(list(curve), [str(cases) for cases in curve])
    axes.set_xlabel("training cases")
    axes.set_ylabel("Dice of the held-out cases")
    axes.legend()
    figure.savefig(path, dpi=110)
