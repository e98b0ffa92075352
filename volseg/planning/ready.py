"""A ready plan for a data set: read from a file, and compared with what the data set states."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from volseg.errors import ConfigError
from volseg.io.cases import listed
from volseg.io.datasets import Dataset
from volseg.io.modality import UNKNOWN
from volseg.planning.derive import revise_plan
from volseg.planning.plan import Plan

logger = logging.getLogger(__name__)

HINT = "make the plan anew with volseg plan, or omit plan.file"


def ready_plan(path: str | Path, overrides: Mapping[str, Any], dataset: Dataset) -> Plan:
    """Read a plan file, override fields, and check that it fits a data set whose voxels are not read.

    Cases that the plan was not made of are named in a warning: their spacing and values had no part in it.

    Args:
        path: A file of ``volseg plan --out``.
        overrides: Field name -> plain value.
        dataset: The data set.

    Raises:
        ConfigError: The file is no plan, a field cannot be overridden, or classes or channels are others.
    """
    plan = revise_plan(Plan.load(path), overrides)
    ours, theirs = plan.label_map, dataset.label_map
    classes = {"classes": plan.labels, "regions": ours.classes, "values to ignore": ours.ignore_label}
    stated = {"classes": theirs.to_plain(), "regions": theirs.classes, "values to ignore": theirs.ignore_label}
    for name, expected in stated.items():
        if classes[name] != expected:
            raise ConfigError(
                f"the plan has other {name}", file=path, found=classes[name], expected=expected, hint=HINT
            )
    named = UNKNOWN not in dataset.channels
    if len(plan.channels) != len(dataset.channels) or (named and plan.channels != dataset.channels):
        found, expected_channels = ", ".join(plan.channels), ", ".join(dataset.channels)
        raise ConfigError("the plan has other channels", file=path, found=found, expected=expected_channels, hint=HINT)
    unknown = [case.id for case in dataset.cases if case.id not in set(plan.cases)]
    if unknown and plan.cases:
        text = "%s: %d of %d cases were not measured for this plan: %s"
        logger.warning(text, path, len(unknown), len(dataset.cases), listed(unknown))
    return plan
