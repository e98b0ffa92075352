"""The plan of a surveyed data set, and the findings that depend on it."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from volseg.errors import ConfigError, GeometryError, OutputError
from volseg.io.cases import listed
from volseg.io.datasets import Dataset
from volseg.io.findings import Finding, counts, in_order, refuse_errors, report
from volseg.io.json_files import read_json, write_json
from volseg.io.paths import exists
from volseg.planning import rules
from volseg.planning.budget import MemoryBudget
from volseg.planning.derive import make_plan
from volseg.planning.fingerprint import Fingerprint, Survey
from volseg.planning.from_model import fields_of_model
from volseg.planning.plan import Plan

logger = logging.getLogger(__name__)

FILE_NAME = "findings.json"
"""File of the findings in a run folder."""


@dataclass(frozen=True, kw_only=True)
class Examination:
    """A checked data set.

    Attributes:
        root: The data set.
        fingerprint: The measurements of the cases without errors; ``None`` if there is no such case.
        plan: The plan; ``None`` if no case can be used.
        findings: Everything that is wrong, doubtful or worth knowing, in the order of reports.
    """

    root: Path
    fingerprint: Fingerprint | None
    plan: Plan | None
    findings: tuple[Finding, ...]

    def usable(self) -> tuple[Fingerprint, Plan]:
        """Return measurements and plan.

        Raises:
            DataError: There are errors; all are listed.
        """
        refuse_errors(self.findings, self.root)
        assert self.fingerprint is not None  # there would be an error
        assert self.plan is not None
        return self.fingerprint, self.plan

    def checked(self) -> Plan:
        """Return the plan, after warnings are logged.

        Raises:
            DataError: There are errors; all are listed.
        """
        _, plan = self.usable()
        warnings = [finding for finding in self.findings if finding.severity == "warning"]
        if warnings:
            logger.warning("%s: %s\n%s", self.root, counts(self.findings), report(warnings))
        return plan


def examine(
    survey: Survey,
    overrides: Mapping[str, Any] | None = None,
    budget: MemoryBudget | None = None,
    model: str | Path | None = None,
) -> Examination:
    """Make the plan of a data set, and find what its cases lose by it.

    Args:
        survey: The data set.
        overrides: Fields of the plan that are set by hand, as in :func:`~volseg.planning.derive.make_plan`.
        budget: Limit of the memory of a training step.
        model: Model file whose plan gives the fields of :data:`~volseg.planning.from_model.TAKEN`.

    Raises:
        ConfigError: An override is invalid, or the plan of the model does not fit the data set.
        ModelFileError: The model file cannot be read.
    """
    dataset, findings = survey.dataset, list(survey.findings)
    plan, measured = None, survey.fingerprint
    while plan is None and measured is not None and measured.cases:
        try:
            plan = _plan(measured, dict(overrides or {}), budget, model)
            findings += _losses(dataset, measured, plan)
        except GeometryError as error:  # of one case, without which the others are looked at
            findings.append(Finding.of_error(error, dataset.root, "voxel-size"))
            others = tuple(case for case in measured.cases if str(case.file) != error.file)
            measured = replace(measured, cases=others) if len(others) < len(measured.cases) else None
    return Examination(root=dataset.root, fingerprint=survey.fingerprint, plan=plan, findings=tuple(in_order(findings)))


def _plan(
    fingerprint: Fingerprint, overrides: dict[str, Any], budget: MemoryBudget | None, model: str | Path | None
) -> Plan:
    if model is None:
        return make_plan(fingerprint, overrides, budget)
    taken = fields_of_model(model, overrides, fingerprint)
    if budget is not None and not budget.default:  # it decides how many patches fit
        taken.pop("batch_size", None)
    plan = make_plan(fingerprint, {**taken, **overrides}, budget)
    reasons = {key: f"that of the model {model}" for key in taken if overrides.get(key) is None}
    return replace(plan, reasons={**plan.reasons, **reasons})


def check_replaceable(path: str | Path) -> None:
    """Check that findings would replace nothing but findings.

    Raises:
        OutputError: The path leads to something else.
    """
    path = Path(path)
    if not exists(path):
        return
    try:
        content = read_json(path, "findings")
    except ConfigError:
        content = None
    if not (isinstance(content, dict) and set(content) == {"findings"}):
        hint = "choose another file for the findings"
        raise OutputError("an existing file holds no findings and is not replaced", file=path, hint=hint)


def write_findings(path: str | Path, findings: Iterable[Finding]) -> None:
    """Write findings as JSON, atomically."""
    write_json(path, {"findings": [finding.to_dict() for finding in findings]})


def _losses(dataset: Dataset, fingerprint: Fingerprint, plan: Plan) -> Iterator[Finding]:
    """Yield the classes of which cropping or resampling takes voxels away."""
    files = {case.id: case.label or case.images[0] for case in dataset.cases}
    axes = rules.ANATOMICAL_AXES[plan.slice_axis]
    for kind, name, cases in rules.lost_labels(fingerprint.cases, axes, plan.spacing_mm, crop=plan.crop_nonzero):
        text = f"class {name}: {listed([f'{case} ({loss})' for case, loss in cases.items()])}"
        yield Finding(kind, tuple(files[case] for case in cases), text)
