"""Results of a cross-validation: the scores of each fold, and the postprocessing that its model files hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from volseg.crossvalidation.folds import PREDICTED_BY, Fold
from volseg.crossvalidation.setup import CrossValidation
from volseg.evaluation.choose_postprocessing import Choice
from volseg.evaluation.results import Evaluation
from volseg.evaluation.summary import summarize
from volseg.io.atomic import atomic_file
from volseg.io.content import file_sha256
from volseg.io.json_files import encoded, write_json
from volseg.io.model_file import read_model, save_model
from volseg.metrics.table import HEADLINE
from volseg.postprocessing.rules import Postprocessing
from volseg.report.tables import aligned_table, with_interval

CHOICE_FILE = "postprocessing.json"
ALL_FOLDS = "all"
"""Key of the scores of all folds together."""


def store_choice(crossval: CrossValidation, choice: Choice) -> Path:
    """Write what was tried and chosen, and store configured and chosen steps in the model files of the folds.

    Returns:
        The file ``postprocessing.json``.

    Raises:
        ModelFileError: A model file cannot be read.
        OutputError: A file cannot be written.
    """
    stored = crossval.postprocessing.joined(choice.postprocessing)
    path = crossval.folder / CHOICE_FILE
    document = {
        "cases": choice.cases,
        "folds": [fold.number for fold in crossval.folds],
        "reason": choice.reason,
        "configured": crossval.postprocessing.to_dict(),
        "chosen": choice.postprocessing.to_dict(),
        "tried": [trial.to_dict() for trial in choice.trials],
    }
    write_json(path, document)
    for fold in crossval.folds:
        _store_postprocessing(fold.model_file, stored)
    return path


def _store_postprocessing(model_file: Path, postprocessing: Postprocessing) -> None:
    """Replace the postprocessing in a model file; the file keeps the hash by which its masks are recorded."""
    state, metadata = read_model(model_file)
    if metadata["postprocessing"] == postprocessing.to_dict():
        return
    predicted_by = metadata["training"].get(PREDICTED_BY) or file_sha256(model_file)
    training = {**metadata["training"], PREDICTED_BY: predicted_by}
    save_model(model_file, state, {**metadata, "postprocessing": postprocessing.to_dict(), "training": training})


def write_fold_scores(evaluation: Evaluation, folds: Sequence[Fold], folder: Path) -> str:
    """Write ``folds.json`` and ``folds.md``: the mean scores of each fold and of all cases, with intervals.

    Args:
        evaluation: The scores of all cases.
        folds: The folds.
        folder: Where to write.

    Returns:
        The table as text.

    Raises:
        OutputError: A file cannot be written.
    """
    parts = {str(fold.number): _part(evaluation, fold.held_out) for fold in folds} | {ALL_FOLDS: evaluation}
    headlines = {
        name: {method: scores["headline"] for method, scores in summarize(part)["methods"].items()}
        for name, part in parts.items()
        if part.cases
    }
    rows = [["fold", "method", "n", *(metric.column_title for metric in HEADLINE)]]
    for name, methods in headlines.items():
        for method, scores in methods.items():
            cells = [with_interval(scores[metric.name], metric.digits) for metric in HEADLINE]
            rows.append([name, method, str(scores["dice"]["n_cases"]), *cells])
    text = aligned_table(rows)
    write_json(folder / "folds.json", headlines)
    with atomic_file(folder / "folds.md") as file:
        file.write(encoded(text + "\n"))
    return text


def _part(evaluation: Evaluation, cases: Sequence[str]) -> Evaluation:
    """Return the results of some of the cases."""
    names = {*cases}
    values: Mapping[str, Any] = vars(evaluation) | {
        "cases": tuple(case for case in evaluation.cases if case in names),
        "results": tuple(result for result in evaluation.results if result.case in names),
    }
    return Evaluation(**values)
