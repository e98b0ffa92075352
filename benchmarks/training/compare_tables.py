"""Results of ``compare.py`` as Markdown, JSON, CSV per case, and a figure."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from shared.record import Record, portable_argument, with_ending, write_json
from shared.text import table
from training.ablation_cells import mean_interval, nan_mean
from training.ablation_tables import interval_text
from training.comparison import METRICS, Model, difference, models_of, read_cells
from training.comparison_notes import notes
from training.runs import commits_text, machine_text, write_csv
from volseg.errors import counted
from volseg.evaluation.compare import compare_paired
from volseg.metrics.statistics import holm
from volseg.metrics.table import METRIC
from volseg.report.tables import p_text


def write_tables(runs: Path, stem: Path, order: Sequence[str], *, reference: str, title: str) -> str:
    """Write tables and figure of all finished cells below ``runs``; return the Markdown."""
    cells, rows = read_cells(runs, order)
    command = [portable_argument(argument) for argument in sys.argv]
    record = {"dataset": title, "budget": stem.name, "reference": reference, "command": command, "cells": cells}
    write_json(with_ending(stem, ".json"), record)
    write_csv(with_ending(stem, ".csv"), rows)
    text = markdown(record, rows)
    with_ending(stem, ".md").write_text(text, encoding="utf-8")
    plot(models_of(cells, rows), with_ending(stem, ".png"))
    return text


def markdown(record: Record, rows: Sequence[Record]) -> str:
    """Return the tables and the conditions, from record and scores as they are written to JSON and CSV."""
    models = models_of(record["cells"], rows)
    reference = next((model for model in models if model.name == record["reference"]), models[0])
    classes = list(dict.fromkeys(row["class"] for row in rows))
    parts = [f"# {record['dataset']}: {budget_text(record['budget'])} per cell", overview(models, classes, reference)]
    parts += ["## Dice by class", by_class(models, classes)]
    if any(run["curve"] for model in models for run in model.runs):
        parts.append(f"![Dice against minutes and steps]({record['budget']}.png)")
    return "\n\n".join([*parts, conditions(models, shlex.join(record["command"]))]) + "\n"


def budget_text(name: str) -> str:
    """Return the name of a budget in words: ``10min`` is ``10 minutes``."""
    for unit, word in (("min", "minute"), ("steps", "step")):
        if name.endswith(unit):
            return counted(name.removesuffix(unit), word)
    return name


def overview(models: Sequence[Model], classes: Sequence[str], reference: Model) -> str:
    """Return a row per model: scores, difference to the reference, cost."""
    head = ["model", "cells", "Dice", "HD95 mm", "NSD", f"Dice minus {reference.name}", "p", "p, Holm", "wins"]
    rows = [[*head, "parameters", "steps", "s per step", "peak MB"]]
    compared = {
        model.name: compare_paired(difference(model, reference, "dice"), classes, higher=True)["mean_over_classes"]
        for model in models
        if model is not reference and model.scores.keys() & reference.scores.keys()
    }
    corrected = dict(zip(compared, holm([found["wilcoxon_p"] for found in compared.values()]), strict=True))
    for model in models:
        found = compared.get(model.name)
        cells = ["", "", "", ""]
        if found:
            low, high = found["ci95"]
            wins = f"{found['wins']} of {found['n']}"
            cells = [f"{found['mean_difference']:+.4f} [{low:+.4f}, {high:+.4f}]", p_text(found["wilcoxon_p"])]
            cells += [p_text(corrected[model.name]), wins]
        steps = [run["steps"] for run in model.runs]
        seconds = sum(run["train_seconds"] for run in model.runs) / sum(steps)
        scores = [interval_text(model.values(metric), f"{{:.{METRIC[metric].digits}f}}") for metric in METRICS]
        cost = [f"{model.runs[0]['parameters']:,}", numbers(steps), f"{seconds:.2f}"]
        rows.append([model.name, str(len(model.runs)), *scores, *cells, *cost, numbers(peaks(model))])
    return table(rows)


def peaks(model: Model) -> list[int]:
    """Return the peak memory of the cells."""
    return [run["peak_memory_mb"] for run in model.runs]


def numbers(values: Sequence[int]) -> str:
    """Return one number, or the range of several."""
    low, high = min(values), max(values)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def by_class(models: Sequence[Model], classes: Sequence[str]) -> str:
    """Return a row per class, a column per model."""
    means = {model.name: nan_mean(model.values("dice"), axis=0) for model in models}
    rows = [["class", *means]]
    rows += [[name, *(f"{values[index]:.4f}" for values in means.values())] for index, name in enumerate(classes)]
    return table(rows)


def conditions(models: Sequence[Model], command: str) -> str:
    """Return the conditions that the cells share, and how to read the tables."""
    runs: list[Record] = [run for model in models for run in model.runs]
    machines = "; ".join(sorted({machine_text(run) for run in runs}))
    dates = ", ".join(sorted({run["date"][:10] for run in runs}))
    draws = sorted({(run["fold"], run["seed"]) for run in runs})
    cases = len(models[0].values("dice"))
    origin = ", ".join(f"{fold}/{seed}" for fold, seed in draws)
    nnunet = "nnU-Net is predicted with mirroring; its validation and torch.compile do not count as training time. "
    note = nnunet if any(model.name == "nnunet" for model in models) else ""
    note += "".join(f"{sentence} " for sentence in notes(models))
    return (
        f"Held-out folds and seeds: {origin}; {cases} cases. Mean over cases, then over classes, in the scans' own "
        "geometry, with 95% bootstrap intervals over cases (not over seeds), of the mean over seeds where there are "
        "several. Differences are paired by case; p: Wilcoxon's signed-rank test over cases. Weights are random unless "
        "stated. `steps`, `s per step` and `peak MB` are of training; validation counts as training time. "
        f"{note}{machines}.\n\n{dates}, commit {commits_text(runs)}: `python {command}`"
    )


def plot(models: Sequence[Model], path: Path) -> None:
    """Draw Dice against minutes and against steps: validations during training, and the final scores as points."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    panels: Any = figure.subplots(1, 2, sharey=True)
    for index, model in enumerate(models):
        color, label = f"C{index}", model.name
        for run in model.runs:
            final = (run["steps"], run["train_seconds"], run["scores"]["mean"]["dice"])
            steps, seconds, dice = zip(*run["curve"], final, strict=True) if run["curve"] else zip(final, strict=True)
            for axes, x in ((panels[0], np.array(seconds) / 60), (panels[1], steps)):
                axes.plot(x, dice, "-", color=color, linewidth=0.8)
                axes.plot(x[-1], dice[-1], "o", color=color, markersize=5, label=label)
            label = None
        middle, low, high = mean_interval(model.values("dice"))
        minutes = np.mean([run["train_seconds"] for run in model.runs]) / 60
        panels[0].errorbar(minutes, middle, yerr=[[middle - low], [high - middle]], color=color, capsize=3)
    panels[0].set_xlabel("minutes of training")
    panels[1].set_xlabel("steps")
    panels[0].set_ylabel("Dice of the held-out cases")
    panels[0].legend(fontsize=8)
    figure.savefig(path, dpi=110)
