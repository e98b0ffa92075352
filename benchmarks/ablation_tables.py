"""The cells of ``ablation.py`` as Markdown, JSON, per-case CSV and a figure."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from cells import read_cases, write_csv
from numpy.typing import NDArray
from record import table

from volseg.metrics.statistics import bootstrap_means, interval, wilcoxon_p
from volseg.report.tables import p_text

Array = NDArray[np.float64]
Cell = dict[str, Any]
"""One part of a table: ``name``, ``runs`` (records), their ``folders``, and ``dice`` (cases, classes) by seed."""
COLUMNS = ("budget", "cell", "seed", "case", "class", "dice", "hd95", "nsd")


def write_tables(runs: Path, stem: Path, order: Sequence[str]) -> str:
    """Write everything from all finished cells below ``runs``, a figure if there is more than one difference to see.

    Args:
        runs: Folders ``<budget>/<cell>/seed<n>``.
        stem: Path of the results without their suffix.
        order: Names of the cells as the table lists them; the first is what the others are compared with.

    Returns:
        The Markdown.
    """
    budgets = {folder.name: read_budget(folder, order) for folder in sorted(runs.iterdir()) if folder.name[0].isdigit()}
    budgets = {name: cells for name, cells in budgets.items() if cells}
    stem.parent.mkdir(parents=True, exist_ok=True)
    records = [{"budget": name, **run} for name, cells in budgets.items() for cell in cells for run in cell["runs"]]
    stem.with_suffix(".json").write_text(json.dumps(records, indent=1) + "\n", encoding="utf-8")
    rows = [row for name, cells in budgets.items() for cell in cells for row in case_rows(name, cell)]
    write_csv(stem.with_suffix(".csv"), rows)
    sections = [f"## {name} a cell\n\n{budget_table(cells)}" for name, cells in budgets.items()]
    text = f"# {stem.name.replace('_', ' ')}\n\n" + "\n\n".join(sections) + f"\n\n{conditions(records)}\n"
    stem.with_suffix(".md").write_text(text, encoding="utf-8")
    worth_seeing = {name: cells for name, cells in budgets.items() if len(cells) > 2}
    if worth_seeing:
        plot(worth_seeing, [cell for cells in budgets.values() for cell in cells], stem.with_suffix(".png"))
    return text


def read_budget(folder: Path, order: Sequence[str]) -> list[Cell]:
    """The finished cells of one budget."""
    cells = []
    for name in order:
        finished = sorted((folder / name.replace(" ", "_")).glob("seed*/cell.json"))
        if finished:
            records = [json.loads(file.read_text(encoding="utf-8")) for file in finished]
            folders = [file.parent for file in finished]
            dice = {record["seed"]: dice_table(run) for record, run in zip(records, folders, strict=True)}
            cells.append({"name": name, "runs": records, "folders": folders, "dice": dice})
    return cells


def mean_dice(cell: Cell) -> Array:
    """Dice of a cell (cases, classes), the mean over its seeds."""
    return np.asarray(np.mean(list(cell["dice"].values()), axis=0))


def difference_to(first: Cell, cell: Cell) -> Array:
    """Dice of a cell less that of the first, the mean over the seeds that both have; NaN if there are none."""
    shared = sorted(first["dice"].keys() & cell["dice"].keys())
    if not shared:
        return np.full_like(mean_dice(cell), np.nan)
    return np.asarray(np.mean([cell["dice"][seed] - first["dice"][seed] for seed in shared], axis=0))


def dice_table(folder: Path) -> Array:
    """Dice of a run, (cases, classes); NaN where it is not defined."""
    rows = read_cases(folder)
    cases, classes = (list(dict.fromkeys(row[key] for row in rows)) for key in ("case", "class"))
    dice = np.full((len(cases), len(classes)), np.nan)
    for row in rows:
        if row["dice"] != "":
            dice[cases.index(row["case"]), classes.index(row["class"])] = float(row["dice"])
    return dice


def case_rows(budget: str, cell: Cell) -> list[dict[str, Any]]:
    """Per-case scores of all seeds."""
    rows = []
    for record, folder in zip(cell["runs"], cell["folders"], strict=True):
        origin = {"budget": budget, "cell": cell["name"], "seed": record["seed"]}
        rows += [{key: {**row, **origin}[key] for key in COLUMNS} for row in read_cases(folder)]
    return rows


def budget_table(cells: list[Cell]) -> str:
    """Scores and costs; differences are to the first cell, case by case and seed by seed."""
    first = cells[0]
    rows = [["cell", "seeds", "Dice", "seeds' means", "HD95 mm", f"Dice less {first['name']}", "p", "parameters"]]
    rows[0] += ["steps", "s a step"]
    for cell in cells:
        records = cell["runs"]
        means = [record["scores"]["mean"] for record in records]
        steps = [record["steps"] for record in records]
        seconds = sum(record["train_seconds"] for record in records) / sum(steps)
        same = cell is first
        difference = difference_to(first, cell)
        rows.append(
            [
                cell["name"],
                str(len(records)),
                interval_text(mean_dice(cell), "{:.4f}"),
                ", ".join(f"{mean['dice']:.4f}" for mean in means),
                f"{np.mean([mean['hd95'] for mean in means]):.2f}",
                "" if same else interval_text(difference, "{:+.4f}"),
                "" if same else p_text(wilcoxon_p(np.nanmean(difference, axis=1))),
                f"{records[0]['parameters']:,}",
                ", ".join(map(str, steps)),
                f"{seconds:.2f}",
            ]
        )
    return table(rows)


def mean_interval(values: Array) -> tuple[float, float, float]:
    """Mean over cases, then over classes, of (cases, classes), and its 95% interval over cases."""
    means = bootstrap_means(values).mean(axis=1, keepdims=True)
    low, high = interval(means)[:, 0]
    return float(np.nanmean(values, axis=0).mean()), float(low), float(high)


def interval_text(values: Array, form: str) -> str:
    """Mean and interval."""
    mean, low, high = (form.format(number) for number in mean_interval(values))
    return f"{mean} [{low}, {high}]"


def conditions(records: list[dict[str, Any]]) -> str:
    """What all cells have in common."""
    machines = sorted({machine_text(record) for record in records})
    commits = sorted({str(record["commit"])[:10] for record in records})
    folds = sorted({text.split("=")[1] for record in records for text in record["settings"] if "data.fold=" in text})
    return (
        f"Each cell changes one thing of the first. Random initialisation; held-out fold {', '.join(folds)}, which "
        "settings may be chosen on. Mean Dice over cases, then over classes, in the scans' own geometry; 95% bootstrap "
        "intervals over cases (not over seeds), of the seeds' mean where there are several, of differences that of the "
        "seeds both cells have; p: Wilcoxon's signed-rank test over cases, not corrected for the number of cells. "
        "`s a step` is time in training over steps; cells "
        f"that ran beside others share their memory's bandwidth. {'; '.join(machines)}; commit {', '.join(commits)}."
    )


def machine_text(record: dict[str, Any]) -> str:
    """Processor, threads and precision of a run."""
    threads = record["hardware"]["threads"]
    return f"{record['hardware']['cpu']}, {threads} thread{'s' if threads > 1 else ''}, {record['precision']}"


def plot(budgets: dict[str, list[Cell]], every: list[Cell], path: Path) -> None:
    """Difference to the first cell with its interval, a panel a budget; then Dice against steps, of every cell."""
    from matplotlib.figure import Figure

    rows = max(map(len, budgets.values()))
    figure = Figure(figsize=(4.4 * len(budgets) + 4.6, 0.4 * rows + 1.6), layout="constrained")
    panels = figure.subplots(1, len(budgets) + 1)
    for axes, (name, cells) in zip(panels, budgets.items(), strict=False):
        for place, cell in enumerate(cells[1:]):
            mean, low, high = mean_interval(difference_to(cells[0], cell))
            axes.errorbar(mean, place, xerr=[[mean - low], [high - mean]], fmt="o", color="#1f4e79", capsize=3)
        axes.axvline(0, color="0.6", linewidth=1)
        axes.set_yticks(range(len(cells) - 1), [cell["name"] for cell in cells[1:]])
        axes.invert_yaxis()
        axes.set_title(f"{name} a cell ({cells[0]['name']}: {mean_interval(mean_dice(cells[0]))[0]:.3f})", fontsize=10)
        axes.set_xlabel(f"Dice less {cells[0]['name']}")
    plot_steps(panels[-1], every)
    figure.savefig(path, dpi=110)


def plot_steps(axes: Any, cells: list[Cell]) -> None:
    """Every run as a point: networks that differ by their speed alone lie on one curve."""
    for index, name in enumerate(dict.fromkeys(cell["name"] for cell in cells)):
        runs = [run for cell in cells if cell["name"] == name for run in cell["runs"]]
        points = sorted((run["steps"], run["scores"]["mean"]["dice"]) for run in runs)
        axes.plot(*zip(*points, strict=True), "o-", color=f"C{index}", linewidth=0.8, markersize=5, label=name)
    axes.set_title("all runs", fontsize=10)
    axes.set_xlabel("steps")
    axes.set_ylabel("Dice")
    axes.legend(fontsize=7)
