"""Planning a data set with the plan of a model that was trained on another one, for fine-tuning."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from volseg.errors import ConfigError, ModelFileError
from volseg.io.model_file import read_metadata
from volseg.io.model_folder import one_model_file
from volseg.planning.derive import revise_plan
from volseg.planning.fingerprint import Fingerprint
from volseg.planning.plan import Plan

TAKEN = (
    "slice_axis",
    "spacing_mm",
    "intensity",
    "crop_nonzero",
    "patch_size",
    "token_stride",
    "decoder_strides",
    "nearest_depth",
    "rotate_in_plane_only",
    "batch_size",
)
"""Fields that are taken from the model. All others say what the data are: classes, channels, mirror axes, air."""
HINT = "omit plan.from, so that the plan is made of the new data, and set single fields, such as plan.spacing_mm"


def plan_of_model(path: str | Path, channels: int) -> Plan:
    """Read the plan of a model file, or of the model of a run folder, for data with a number of channels.

    Raises:
        ConfigError: The model has another number of channels.
        ModelFileError: The file is missing, no model or damaged.
    """
    try:
        plan = Plan.from_dict(read_metadata(one_model_file(Path(path)))["plan"])
    except ConfigError as error:
        raise ModelFileError("the plan of the model file is damaged", file=path, found=error) from error
    if plan.num_channels != channels:
        raise ConfigError(
            "the model of plan.from has another number of channels",
            file=path,
            found=f"{plan.num_channels}: {', '.join(plan.channels)}",
            expected=f"{channels}, those of the data set",
            hint=HINT,
        )
    return plan


def fields_of_model(path: str | Path, overrides: Mapping[str, Any], fingerprint: Fingerprint) -> dict[str, Any]:
    """Return the fields of a plan that a data set takes from a model, as plain values.

    Args:
        path: The model file, or a run folder.
        overrides: Field name -> plain value, set by hand; strides and patch of the model follow them.
        fingerprint: The measured data set.

    Returns:
        The fields of `TAKEN`; the intensity rules in the order of the data set's channels, by name if the names are the
        same, otherwise by position.

    Raises:
        ConfigError: The model has another number of channels, or another modality.
        ModelFileError: The file is missing, no model or damaged.
    """
    plan = plan_of_model(path, len(fingerprint.channels))
    if plan.modality != fingerprint.modality and not {"intensity", "modality"} & {*overrides}:
        raise ConfigError(
            "the model of plan.from has another modality, whose normalisation does not fit",
            file=path,
            found=plan.modality,
            expected=fingerprint.modality,
            hint=HINT,
        )
    strides = {key: overrides[key] for key in ("spacing_mm", "token_stride", "patch_size") if key in overrides}
    values = revise_plan(plan, strides).to_dict()
    names, new = ([name.strip().lower() for name in each] for each in (plan.channels, fingerprint.channels))
    if sorted(names) == sorted(new):
        values["intensity"] = [values["intensity"][names.index(name)] for name in new]
    taken = {key: values[key] for key in TAKEN}
    if overrides.get("modality") is not None:
        del taken["intensity"]  # the rule of that modality
    return taken
