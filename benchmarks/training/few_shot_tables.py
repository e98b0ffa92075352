"""Results of ``few_shot.py`` as Markdown, JSON, CSV per case, and a figure."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from shared.record import write_json
from shared.text import table
from training.ablation_cells import Cell, cells_of, difference_to, mean_dice, mean_interval, read_runs
from training.ablation_tables import interval_text
from training.runs import machine_text, write_csv

Curve = dict[int, list[Cell]]
"""Cells of each number of training cases, in increasing order; the last arm is the control."""


def write_tables(runs: Path, stem: Path, arms: Sequence[str]) -> str:
    """Write table and figure of all finished runs ``runs/<n> cases/<arm>/seed<n>``; return the Markdown."""
    records, rows = read_runs(runs, arms)
    write_json(stem.with_suffix(".json"), records)
    write_csv(stem.with_suffix(".csv"), rows)
    curve = curve_of(cells_of(records, rows))
    text = markdown(stem.name, curve)
    stem.with_suffix(".md").write_text(text, encoding="utf-8")
    plot(curve, stem.with_suffix(".png"))
    return text


def curve_of(budgets: dict[str, list[Cell]]) -> Curve:
    """Return the cells by number of training cases."""
    return {cases: budgets[name] for cases, name in sorted((int(name.split()[0]), name) for name in budgets)}


def markdown(name: str, curve: Curve) -> str:
    """Return a row per number of cases, with the difference of the arms, and the conditions."""
    arms = [cell.name for cell in next(iter(curve.values()))]
    rows = [["training cases", "seeds", *(f"Dice, {arm}" for arm in arms), f"{arms[0]} minus {arms[-1]}"]]
    for cases, cells in curve.items():
        dice = [interval_text(mean_dice(cell), "{:.4f}") for cell in cells]
        difference = interval_text(difference_to(cells[-1], cells[0]), "{:+.4f}")
        rows.append([str(cases), str(len(cells[0].runs)), *dice, difference])
    title = f"# Few-shot curve: {name.replace('_', ' ')}"
    return f"{title}\n\n{table(rows)}\n\n![Dice against training cases]({name}.png)\n\n{conditions(curve)}\n"


def conditions(curve: Curve) -> str:
    """Return the conditions that all runs share, and how to read the table."""
    cells = [cell for cells in curve.values() for cell in cells]
    runs = [run for cell in cells for run in cell.runs]
    machines = "; ".join(sorted({machine_text(run) for run in runs}))
    commits = ", ".join(sorted({str(run["commit"])[:10] for run in runs}))
    fold = next(text.split("=")[1] for text in runs[0]["settings"] if "data.fold=" in text)
    return (
        f"Random weights; fold {fold} held out, {len(mean_dice(cells[0]))} cases; {runs[0]['steps']} steps per run. "
        "Both arms of a seed have the same training cases. Mean Dice over held-out cases, then over classes, in the "
        "scans' own geometry, and over seeds; 95% bootstrap intervals over the held-out cases (not over seeds); "
        f"differences are paired by case and seed. {machines}; commit {commits}. Measured by "
        "`python benchmarks/few_shot.py`."
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
