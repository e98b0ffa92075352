"""What the models of a comparison do not have in common, as sentences for its page."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from shared.record import Record
from training.comparison import MODELS, Model
from training.runs import machine_text
from volseg.training.resume import MAY_CHANGE

OF_CELL = ("data.fold", "seed")


def notes(models: Sequence[Model]) -> Iterator[str]:
    """Yield a sentence for everything in which the models differ, beside what the table compares."""
    draws = {draw for model in models for draw in model.scores}
    for model in models:
        if missing := sorted(draws - model.scores.keys()):
            text = ", ".join(f"{fold}/{seed}" for fold, seed in missing)
            yield f"**{model.name} lacks {text}**: its means are over less, and differences over what both models have."
    if undefined := _undefined(models):
        yield (
            f"**{undefined} scores are undefined for some models only** (no voxel of the class in mask and reference), "
            "and differences leave them out."
        )
    for what, text in (("Settings", _settings), ("Machines", machine_text)):
        if (found := _each(models, text)) and (what == "Settings" or len({*found.values()}) > 1):
            yield f"{what}: {'; '.join(f'{name}: {value}' for name, value in found.items())}."
    runs = [run for model in models for run in model.runs]
    if resumed := [f"{run['model']} {run['fold']}/{run['seed']}" for run in runs if run.get("resumed_commits")]:
        yield f"Resumed, with the peak memory since then: {', '.join(resumed)}."


def _undefined(models: Sequence[Model]) -> int:
    """Return the number of scores (case, class, fold and seed) that some models have and others do not."""
    shared = set.intersection(*({*model.scores} for model in models))
    count = 0
    for draw in shared:
        tables = [model.scores[draw]["dice"] for model in models]
        for case in tables[0]:
            undefined = np.isnan([table[case] for table in tables])
            count += int((undefined.any(axis=0) & ~undefined.all(axis=0)).sum())
    return count


def _each(models: Sequence[Model], text: Callable[[Record], str]) -> dict[str, str]:
    """Return a text of each model's cells, where it has one."""
    found = {model.name: sorted({text(run) for run in model.runs} - {""}) for model in models}
    return {name: " or ".join(texts) for name, texts in found.items() if texts}


def _settings(run: Record) -> str:
    """Return the settings of a cell beside those of its model that change weights or scores."""
    given = [text for text in run.get("settings", ()) if text not in MODELS.get(run["model"], ())]
    return ", ".join(text for text in given if text.split("=")[0] not in (*MAY_CHANGE, *OF_CELL))
