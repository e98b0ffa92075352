"""Probe: features of labelled scans or slices, classified, scored and written."""

from __future__ import annotations

import csv
import io
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from volseg.errors import ConfigError, DataError, counted
from volseg.io.atomic import atomic_file
from volseg.io.json_files import write_json
from volseg.parallel import Progress
from volseg.probing.classify import METHODS, Fold, Predictions, cross_predict, make_folds
from volseg.probing.encoder import SliceTokens
from volseg.probing.labels import Labels, Sample
from volseg.probing.scans import ScanSet, ScanSlices
from volseg.probing.scores import METRICS, scores_with_intervals
from volseg.report.tables import aligned_table, check_inputs, no_formula, with_interval
from volseg.version import __version__

logger = logging.getLogger(__name__)

FILES = ("probe.json", "predictions.csv", "probe.md")


@dataclass(frozen=True, kw_only=True)
class ProbeResult:
    """Scores of frozen features.

    Attributes:
        summary: What was done and the scores, as in ``probe.json``.
        table: The table of ``probe.md``.
        files: The files that were written.
    """

    summary: dict[str, Any]
    table: str
    files: tuple[Path, ...]


def run_probe(
    scans: ScanSet, labels: Labels, output: Path, *, slices: int, seed: int, progress: Progress | None = None
) -> ProbeResult:
    """Classify scans or slices from frozen features; see :func:`volseg.probe`.

    Raises:
        ConfigError: No slices are to be used.
        DataError: Labels and scans do not belong together, a scan cannot be read, or a class has too few patients.
        OutputError: A file cannot be written, or would replace the table of labels.
    """
    if slices < 1:
        raise ConfigError("the number of slices is out of range", found=slices, expected="at least 1")
    check_inputs([labels.file], output, FILES)
    classes, samples = labels.classes, labels.samples
    truth = np.array([classes.index(sample.label) for sample in samples])
    patients = np.unique([sample.patient for sample in samples], return_inverse=True)[1]
    folds = make_folds(labels, truth, patients, seed)
    features, kind = read_features(scans, labels, slices, progress)
    logger.info("classifying %s by %s", counted(len(samples), "row"), " and ".join(METHODS))
    tested = np.concatenate([fold.test for fold in folds])
    outcomes, scores = {}, {}
    for name, (make, choices, setting) in METHODS.items():
        outcome = cross_predict(make, choices, features, truth, patients, folds, classes=len(classes), seed=seed)
        outcomes[name] = outcome
        probabilities = outcome.probabilities[tested]
        groups = np.unique(patients[tested], return_inverse=True)[1]
        predicted = probabilities.argmax(axis=1)
        measured = scores_with_intervals(truth[tested], probabilities, predicted, groups, seed=seed)
        scores[name] = {**measured, "setting": setting, "chosen": outcome.chosen}
    about = {"feature": kind, "width": features.shape[1], "seed": seed}
    summary = _summary(scans, labels, folds, about, scores)
    table = _table(summary)
    texts = {FILES[1]: _predictions(samples, classes, folds, outcomes), FILES[2]: table + "\n"}
    write_json(output / FILES[0], summary)
    for name, text in texts.items():
        with atomic_file(output / name) as file:
            file.write(text.encode())
    return ProbeResult(summary=summary, table=table, files=tuple(output / name for name in FILES))


def read_features(
    scans: ScanSet, labels: Labels, slices: int, progress: Progress | None = None
) -> tuple[NDArray[np.float64], str]:
    """Return the features of the samples, ``(N, E)``, and what they are in words.

    The feature of a slice is its class token, or the mean of its patch tokens of the last tap where the encoder has
    none. That of a scan is the mean over evenly spaced slices.

    Args:
        scans: The scans and the encoder.
        labels: The samples.
        slices: Most slices of a scan; labelled slices are all used.
        progress: Called after every encoded scan with (done, in all).

    Raises:
        DataError: A scan cannot be read, or has no such slice; all rows of a scan are listed.
    """
    rows: dict[str, list[int]] = {}
    for index, sample in enumerate(labels.samples):
        rows.setdefault(sample.case, []).append(index)
    features: dict[int, NDArray[np.float64]] = {}
    logger.info("encoding slices of %s", counted(len(scans.cases), "scan"))
    for done, case in enumerate(scans.cases, start=1):
        scan, own = scans.read(case), rows[case.id]
        rows_of_scan = [labels.samples[index] for index in own]
        numbers = _numbers(scan, rows_of_scan, labels.file) if labels.of_slices else scan.evenly(slices)
        tokens = scans.encoder.tokens(scan, numbers)
        vectors = [slice_feature(each) for each in tokens]
        features.update(zip(own, vectors if labels.of_slices else [np.mean(vectors, axis=0)], strict=True))
        if progress is not None:
            progress(done, len(scans.cases))
    kind = "mean of the patch tokens of the last tap" if tokens[0].class_token is None else "class token"
    if not labels.of_slices:
        kind = f"mean over at most {slices} evenly spaced slices of the {kind}"
    return np.stack([features[index] for index in range(len(labels.samples))]), kind


def slice_feature(tokens: SliceTokens) -> NDArray[np.float64]:
    """Return the class token of a slice, or the mean of its patch tokens: ``(E,)``."""
    if tokens.class_token is not None:
        return tokens.class_token.astype(np.float64)
    return np.asarray(tokens.patches.mean(axis=(1, 2), dtype=np.float64))


def _numbers(scan: ScanSlices, samples: Sequence[Sample], file: Path) -> list[int]:
    """Return the slices of a scan that its rows name."""
    found: list[int] = []
    wrong: list[str] = []
    for sample in samples:
        assert sample.slice is not None  # slices are labelled
        number = scan.of_file(sample.slice) if sample.slice < scan.file_slices else None
        if number is None:
            wrong.append(f"row {sample.row}: slice {sample.slice}")
        else:
            found.append(number)
    if wrong:
        expected = f"0 to {scan.file_slices - 1}, without slices that hold only zeros at its ends"
        raise DataError(f"slices are not in the scan {scan.id}", file=file, found=", ".join(wrong), expected=expected)
    return found


def _summary(
    scans: ScanSet, labels: Labels, folds: Sequence[Fold], about: Mapping[str, Any], scores: Mapping[str, Any]
) -> dict[str, Any]:
    counts = Counter(sample.label for sample in labels.samples)
    return {
        "volseg": __version__,
        "encoder": scans.encoder.record,
        "labels": str(labels.file),
        **about,
        "unit": "slice" if labels.of_slices else "scan",
        "scans": len(scans.cases),
        "patients": len({sample.patient for sample in labels.samples}),
        "classes": {name: counts[name] for name in labels.classes},
        "folds": labels.split_by or f"{len(folds)}, stratified by class and grouped by patient",
        "tested": int(sum(len(fold.test) for fold in folds)),
        "methods": dict(scores),
    }


def _table(summary: Mapping[str, Any]) -> str:
    titles = ("accuracy", "balanced accuracy", "AUC")
    rows = [["method", "setting", *titles]]
    for name, scores in summary["methods"].items():
        chosen = ", ".join(f"{value:g}" for value in scores["chosen"].values())
        rows.append([name, f"{scores['setting']} = {chosen}", *(with_interval(scores[each], 3) for each in METRICS)])
    tested = f"{counted(summary['tested'], summary['unit'])} of {counted(summary['scans'], 'scan')}"
    classes = ", ".join(f"{name} {count}" for name, count in summary["classes"].items())
    return f"{aligned_table(rows)}\n\ntested: {tested}; classes: {classes}; feature: {summary['feature']}"


def _predictions(
    samples: Sequence[Sample], classes: Sequence[str], folds: Sequence[Fold], outcomes: Mapping[str, Predictions]
) -> str:
    """Return a row for each tested sample, in the order of the labels."""
    fold_of = {int(index): fold.name for fold in folds for index in fold.test}
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    own = [column for name in METHODS for column in (name, *(f"{name} p({each})" for each in classes))]
    writer.writerow(["case", "slice", "patient", "fold", "label", *map(no_formula, own)])
    for index in sorted(fold_of):
        sample, cells = samples[index], list[str]()
        for outcome in outcomes.values():
            values = outcome.probabilities[index]
            cells += [no_formula(classes[int(values.argmax())]), *(f"{value:.6g}" for value in values)]
        number = "" if sample.slice is None else str(sample.slice)
        texts = (no_formula(sample.case), number, no_formula(sample.patient), fold_of[index], no_formula(sample.label))
        writer.writerow([*texts, *cells])
    return stream.getvalue()
