"""Tables of scores: CSV of every case and class, JSON of the summary, Markdown of the means."""

from __future__ import annotations

import csv
import io
import json
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from volseg.errors import OutputError
from volseg.evaluation.results import Evaluation
from volseg.io.atomic import atomic_file, free_name
from volseg.io.json_files import encoded
from volseg.metrics.table import HEADLINE, METRIC

logger = logging.getLogger(__name__)

FILES = ("cases.csv", "scores.json", "scores.md", "report.html")
COLUMNS = ("method", "case", "class", "status", *METRIC, "pred_voxels", "ref_voxels", "missing", "error")


def csv_text(evaluation: Evaluation) -> str:
    """Return one line per method, case and class; an undefined score is empty, a failed case has one line.

    Text that a spreadsheet would run as a formula begins with an apostrophe.
    """
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(COLUMNS)
    for result in evaluation.results:
        method, case = no_formula(result.method), no_formula(result.case)
        if result.error is not None:
            blank = [""] * (len(METRIC) + 2)
            writer.writerow([method, case, "", "failed", *blank, int(result.missing), no_formula(result.error)])
        for name, scores in result.scores.items():
            values = [_csv_number(float(scores[metric])) for metric in METRIC]
            counts = [scores["pred_voxels"], scores["ref_voxels"]]
            writer.writerow(
                [method, case, no_formula(name), scores["status"], *values, *counts, int(result.missing), ""]
            )
    return stream.getvalue()


def markdown_text(summary: Mapping[str, Any]) -> str:
    """Return a table per method, the comparisons, and the convention line.

    Args:
        summary: From ``evaluation.summary.summarize``.
    """
    parts = [_method_table(name, method) for name, method in summary["methods"].items()]
    if summary["comparisons"]:
        parts.append(_comparison_table(summary["comparisons"]))
    return "\n\n".join([*parts, summary["convention"]]) + "\n"


def write_tables(evaluation: Evaluation, summary: Mapping[str, Any], folder: str | Path) -> list[Path]:
    """Write ``cases.csv``, ``scores.json`` and ``scores.md``.

    Returns:
        Paths of the files.

    Raises:
        OutputError: The folder cannot be written.
    """
    texts = {
        "cases.csv": csv_text(evaluation),
        "scores.json": json.dumps(summary, indent=1, ensure_ascii=False, allow_nan=False) + "\n",
        "scores.md": markdown_text(summary),
    }
    for name in ("cases.csv", "scores.json"):
        _keep_foreign(Path(folder) / name)
    for name, text in texts.items():
        with atomic_file(Path(folder) / name) as file:
            file.write(encoded(text))
    return [Path(folder) / name for name in texts]


def no_formula(text: str) -> str:
    """Return text that no spreadsheet runs, without carriage returns, which the csv module does not quote.

    Source: OWASP, CSV Injection.
    """
    text = text.replace("\r", "\\r")
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t")) else text


def check_inputs(inputs: Sequence[str | Path], folder: str | Path, files: Sequence[str] = FILES) -> None:
    """Check that outputs, by default the tables of an evaluation, would not replace an input.

    Raises:
        OutputError: An input has the name of an output, in the same folder.
    """
    outputs = {(Path(folder) / name).resolve() for name in files}
    for path in inputs:
        if Path(path).resolve() in outputs:
            raise OutputError("an output would replace an input", file=path, hint="choose another output folder")


def _keep_foreign(path: Path) -> None:
    """Rename a file that an evaluation did not write."""
    if not path.is_file():
        return
    try:
        content = path.read_bytes()
        own = content.startswith(b"method,case,class,") or {"methods", "convention"} <= set(json.loads(content))
    except (ValueError, TypeError, RecursionError):
        own = False
    if not own:
        kept = path.rename(free_name(path))
        logger.warning("%s was not written by volseg evaluate; it is kept as %s", path, kept.name)


def aligned_table(rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table whose columns also line up in a terminal; the first row is the header."""
    cells = [[cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows]
    widths = [max(3, *(len(row[i]) for row in cells)) for i in range(len(cells[0]))]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    lines = [
        [row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))] for row in cells
    ]
    return "\n".join("| " + " | ".join(line) + " |" for line in [lines[0], rule, *lines[1:]])


def number_text(value: float | None, digits: int = 3) -> str:
    """Format a number for a table; a dash if it is not defined."""
    return "–" if value is None or math.isnan(value) else f"{value:.{digits}f}"


def p_text(value: float | None) -> str:
    """Format a p value with three digits, or as ``<0.001``."""
    return "<0.001" if value is not None and value < 0.001 else number_text(value)


def _method_table(name: str, method: Mapping[str, Any]) -> str:
    header = ["class", "n", *(metric.column_title for metric in HEADLINE), "missed", "spurious", "both empty"]
    rows = [header]
    for class_name, scores in method["classes"].items():
        values = [with_interval(scores[metric.name], metric.digits) for metric in HEADLINE]
        counts = [str(scores[f"n_{status}"]) for status in ("missed", "spurious", "both_empty")]
        rows.append([class_name, str(scores["dice"]["n"]), *values, *counts])
    headline = method["headline"]
    values = [with_interval(headline[metric.name], metric.digits) for metric in HEADLINE]
    counts = [
        str(sum(scores[f"n_{status}"] for scores in method["classes"].values()))
        for status in ("missed", "spurious", "both_empty")
    ]
    rows.append(["**mean**", str(headline["dice"]["n_cases"]), *values, *counts])
    problems = [f"{method[f'n_{kind}']} {kind}" for kind in ("missing", "failed") if method[f"n_{kind}"]]
    title = f"**{name}**" + (f" ({', '.join(problems)})" if problems else "")
    return f"{title}\n\n{aligned_table(rows)}"


def _comparison_table(comparisons: Sequence[Mapping[str, Any]]) -> str:
    rows = [["comparison", "metric", "class", "n", "difference", "p (Holm)", "wins", "ties", "losses"]]
    for entry in comparisons:
        metric = METRIC[entry["metric"]]
        if not metric.headline:
            continue
        for name, paired in [*entry["classes"].items(), ("mean over classes", entry["mean_over_classes"])]:
            p = paired.get("holm_p", paired["wilcoxon_p"])
            counts = [str(paired[key]) for key in ("wins", "ties", "losses")]
            difference = with_interval({"mean": paired["mean_difference"], **paired}, metric.digits)
            pair = f"{entry['a']} − {entry['b']}"
            rows.append([pair, metric.name, name, str(paired["n"]), difference, p_text(p), *counts])
    return aligned_table(rows)


def with_interval(scores: Mapping[str, Any], digits: int) -> str:
    """Return ``mean`` and ``ci95`` of a score as text: ``0.861 [0.842, 0.879]``."""
    low, high = scores["ci95"]
    mean = number_text(scores["mean"], digits)
    return mean if low is None else f"{mean} [{number_text(low, digits)}, {number_text(high, digits)}]"


def _csv_number(value: float) -> str:
    return "" if math.isnan(value) else repr(value)
