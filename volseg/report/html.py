"""``report.html``: a self-contained file with tables, distributions and pictures of example cases."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from volseg.errors import counted
from volseg.evaluation.results import CaseResult, Evaluation
from volseg.io.atomic import atomic_file
from volseg.metrics.table import HEADLINE, METRIC
from volseg.report.examples import Images, Picture, example_pictures
from volseg.report.plots import METHOD_COLOURS, difference_svg, distribution_svg
from volseg.report.tables import number_text, p_text

_CLASS_COLUMNS = 8  # with more classes, the table of cases has no column per class


def write_report(
    folder: str | Path, evaluation: Evaluation, summary: Mapping[str, Any], images: Images | None = None
) -> list[Path]:
    """Write ``report.html`` and its pictures as ``<method>_worst.png``, ``_median`` and ``_best``.

    Args:
        folder: Output folder.
        evaluation: The scores.
        summary: From ``evaluation.summary.summarize``.
        images: Scans for the pictures; without them only contours are drawn.

    Returns:
        Paths of the files.

    Raises:
        OutputError: A file cannot be written.
    """
    evaluation, summary = printable(evaluation), printable(summary)
    images = images or Images({})
    images = replace(images, files=printable(dict(images.files)))
    pictures = example_pictures(evaluation, images)
    contents = {"report.html": render_report(evaluation, summary, pictures).encode("utf-8", "xmlcharrefreplace")}
    contents |= {picture.file_name: picture.png for picture in pictures}
    for name, content in contents.items():
        with atomic_file(Path(folder) / name) as file:
            file.write(content)
    return [Path(folder) / name for name in contents]


def printable(value: Any) -> Any:
    """Return results or plain values with names that can be drawn: bytes that are not UTF-8 are escaped."""
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, Evaluation):
        results = [replace(one, method=printable(one.method), case=printable(one.case)) for one in value.results]
        names = {name: printable(getattr(value, name)) for name in ("methods", "cases", "unmatched")}
        return replace(value, results=tuple(results), **names)
    if isinstance(value, dict):
        return {printable(key): printable(item) for key, item in value.items()}
    return type(value)(printable(item) for item in value) if isinstance(value, list | tuple) else value


def render_report(evaluation: Evaluation, summary: Mapping[str, Any], pictures: Sequence[Picture]) -> str:
    """Render the report as HTML; autoescape covers every name in it."""
    from jinja2 import Environment, PackageLoader
    from markupsafe import Markup

    environment = Environment(loader=PackageLoader("volseg", "report"), autoescape=True, trim_blocks=True)
    environment.filters |= {"number": number_text, "p_value": p_text, "counted": counted}
    names = [metric.name for metric in HEADLINE]
    scored = any(result.scores for result in evaluation.results)
    return environment.get_template("report.html.j2").render(
        summary=summary,
        methods=evaluation.methods,
        classes=evaluation.classes,
        colours={m: METHOD_COLOURS[i % len(METHOD_COLOURS)] for i, m in enumerate(evaluation.methods)},
        distributions=[Markup(distribution_svg(evaluation, m)) for m in names] if scored else [],
        differences=[
            Markup(difference_svg(evaluation, comparison))
            for comparison in summary["comparisons"]
            if comparison["metric"] in names
        ],
        comparisons=[c for c in summary["comparisons"] if c["metric"] in names],
        headline=HEADLINE,
        metric=METRIC,
        pictures=pictures,
        class_columns=evaluation.classes if len(evaluation.classes) <= _CLASS_COLUMNS else (),
        nan=math.nan,
        rows=[_row(result) for result in evaluation.results],
    )


def _row(result: CaseResult) -> dict[str, Any]:
    """Return a row of the table of cases: means over the classes, and remarks on errors."""
    remarks = [] if result.error is None else [f"failed: {result.error}"]
    remarks += ["no prediction"] if result.missing else []
    for status in ("missed", "spurious"):
        names = [name for name, scores in result.scores.items() if scores["status"] == status]
        if names and not result.missing:
            remarks.append(f"{status}: {', '.join(names)}")
    return {
        "method": result.method,
        "case": result.case,
        "means": {metric.name: _mean(result, metric.name) for metric in HEADLINE},
        "classes": {name: float(scores["dice"]) for name, scores in result.scores.items()},
        "remark": "; ".join([*remarks, *result.notes]),
    }


def _mean(result: CaseResult, metric: str) -> float:
    values = np.array([scores[metric] for scores in result.scores.values()], dtype=np.float64)
    return float(values[~np.isnan(values)].mean()) if not np.isnan(values).all() else math.nan
