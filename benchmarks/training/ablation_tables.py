"""Results of ``ablation.py`` as Markdown, JSON, CSV per case, and a figure."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from shared.record import Record, with_ending, write_json
from shared.text import table
from training.ablation_cells import Array, Cell, cells_of, difference_to, mean_dice, mean_interval, nan_mean, read_runs
from training.runs import commits_text, machine_text, write_csv
from volseg.metrics.statistics import wilcoxon_p
from volseg.report.tables import p_text


def write_tables(runs: Path, stem: Path, order: Sequence[str]) -> str:
    """Write tables of all finished runs below ``runs``, and a figure where a budget has more than two cells.

    Args:
        runs: Folders ``<budget>/<cell>/seed<n>``.
        stem: Path of the results without suffix.
        order: Names of the cells as the table lists them; the others are compared with the first.

    Returns:
        The Markdown.
    """
    records, rows = read_runs(runs, order)
    write_json(with_ending(stem, ".json"), records)
    write_csv(with_ending(stem, ".csv"), rows)
    budgets = cells_of(records, rows)
    text = markdown(stem.name, budgets)
    with_ending(stem, ".md").write_text(text, encoding="utf-8")
    if any(len(cells) > 2 for cells in budgets.values()):
        plot(budgets, with_ending(stem, ".png"))
    return text


def markdown(name: str, budgets: dict[str, list[Cell]]) -> str:
    """Return a table per budget and the conditions."""
    sections = [f"## {budget} per cell\n\n{budget_table(cells)}" for budget, cells in budgets.items()]
    records = [run for cells in budgets.values() for cell in cells for run in cell.runs]
    return "\n\n".join([f"# Ablation: {name.replace('_', ' ')}", *sections, conditions(records)]) + "\n"


def budget_table(cells: list[Cell]) -> str:
    """Return the table of scores and costs; differences are to the first cell, paired by case and seed."""
    first = cells[0]
    rows = [["cell", "seeds", "Dice", "seeds' means", "HD95 mm", f"Dice minus {first.name}", "p", "parameters"]]
    rows[0] += ["steps", "s per step"]
    for cell in cells:
        records = cell.runs
        means = [record["scores"]["mean"] for record in records]
        steps = [record["steps"] for record in records]
        seconds = sum(record["train_seconds"] for record in records) / sum(steps)
        difference = difference_to(first, cell)
        alone = cell is first or np.isnan(difference).all()  # no seed in common
        rows.append(
            [
                cell.name,
                str(len(records)),
                interval_text(mean_dice(cell), "{:.4f}"),
                ", ".join(f"{mean['dice']:.4f}" for mean in means),
                f"{np.mean([mean['hd95'] for mean in means]):.2f}",
                "" if alone else interval_text(difference, "{:+.4f}"),
                "" if alone else p_text(wilcoxon_p(nan_mean(difference, axis=1))),
                f"{records[0]['parameters']:,}",
                ", ".join(map(str, steps)),
                f"{seconds:.2f}",
            ]
        )
    return table(rows)


def interval_text(values: Array, form: str) -> str:
    """Return mean and interval as text; a single case has no interval, and without a score the text is empty."""
    mean, low, high = mean_interval(values)
    if np.isnan(mean):
        return ""
    return form.format(mean) + ("" if np.isnan(low) else f" [{form.format(low)}, {form.format(high)}]")


def conditions(records: list[Record]) -> str:
    """Return the conditions that all cells share, and how to read the table."""
    machines = sorted({machine_text(record) for record in records})
    folds = sorted({text.split("=")[1] for record in records for text in record["settings"] if "data.fold=" in text})
    return (
        f"Each cell changes one setting of the first. Random weights; held-out fold {', '.join(folds)}, which may be "
        "used to choose settings. Mean Dice over cases, then over classes, in the scans' own geometry; 95% bootstrap "
        "intervals over cases (not over seeds), of the mean over seeds where there are several; differences use the "
        "seeds that both cells have; p: Wilcoxon's signed-rank test over cases, not corrected for the number of cells. "
        "`s per step` is training time over steps; runs side by side share the memory bandwidth. "
        f"{'; '.join(machines)}; commit {commits_text(records)}. Measured by `python benchmarks/ablation.py`."
    )


def plot(budgets: dict[str, list[Cell]], path: Path) -> None:
    """Draw the differences to the first cell, a panel per budget, and Dice against steps of all runs."""
    from matplotlib.figure import Figure

    compared = {budget: cells for budget, cells in budgets.items() if len(cells) > 2}
    rows = max(map(len, compared.values()))
    figure = Figure(figsize=(4.4 * len(compared) + 4.6, 0.4 * rows + 1.6), layout="constrained")
    panels = figure.subplots(1, len(compared) + 1)
    for axes, (budget, cells) in zip(panels, compared.items(), strict=False):
        for row, cell in enumerate(cells[1:]):
            mean, low, high = mean_interval(difference_to(cells[0], cell))
            axes.errorbar(mean, row, xerr=[[mean - low], [high - mean]], fmt="o", color="#1f4e79", capsize=3)
        axes.axvline(0, color="0.6", linewidth=1)
        axes.set_yticks(range(len(cells) - 1), [cell.name for cell in cells[1:]])
        axes.invert_yaxis()
        first, dice = cells[0].name, mean_interval(mean_dice(cells[0]))[0]
        axes.set_title(f"{budget} per cell ({first}: {dice:.3f})", fontsize=10)
        axes.set_xlabel(f"Dice minus {first}")
    plot_steps(panels[-1], [cell for cells in budgets.values() for cell in cells])
    figure.savefig(path, dpi=110)


def plot_steps(axes: Any, cells: list[Cell]) -> None:
    """Draw every run as a point: networks that differ in speed alone lie on one curve."""
    for index, name in enumerate(dict.fromkeys(cell.name for cell in cells)):
        runs = [run for cell in cells if cell.name == name for run in cell.runs]
        points = sorted((run["steps"], run["scores"]["mean"]["dice"]) for run in runs)
        axes.plot(*zip(*points, strict=True), "o-", color=f"C{index}", linewidth=0.8, markersize=5, label=name)
    axes.set_title("all runs", fontsize=10)
    axes.set_xlabel("steps")
    axes.set_ylabel("Dice")
    axes.legend(fontsize=7)
