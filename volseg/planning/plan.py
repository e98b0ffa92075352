"""The plan: all decisions that depend on the data set; it is stored with the model."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

from volseg.config.reference import Setting, attribute_docs
from volseg.errors import ConfigError, OutputError
from volseg.geometry.resample import check_zoom
from volseg.io.json_files import read_json, write_json
from volseg.io.labels import LabelMap
from volseg.io.paths import exists
from volseg.planning import nnunet, rules, validate
from volseg.planning.channel import RULE_OF_NAME, ChannelIntensity
from volseg.planning.fields import boolean, check_keys, integer, mapping, number, optional, sequence, text
from volseg.planning.fingerprint import Fingerprint, Triple
from volseg.planning.ranges import ScanRanges

logger = logging.getLogger(__name__)

PLAN_VERSION = 1
Size = tuple[int, int, int]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Decisions derived from a data set. Triples are (D, H, W) of the working grid.

    Attributes:
        version: Version of this format.
        dataset: Name of the data set.
        modality: ``ct`` or ``mri``.
        channels: Channel names.
        labels: File value of each class by name, background (0) included.
        ignore_label: File value of voxels that count neither in the loss nor in scores.
        slice_axis: ``R``, ``A`` or ``S``: the direction of D.
        spacing_mm: Voxel size of the working grid.
        intensity: Normalisation of each channel.
        crop_nonzero: Crop to the box of nonzero voxels first.
        patch_size: Training patch and inference window, multiples of the deepest decoder stride.
        token_stride: Voxels per token in plane.
        decoder_strides: Cumulative stride of each decoder level, finest first.
        mirror_axes: Axes (0, 1, 2 = D, H, W) that training and test-time augmentation may flip.
        nearest_depth: Restore along D by the nearest slice, not linearly.
        rotate_in_plane_only: Augmentation rotates about D only.
        ranges: What the training scans were like; scans that differ are named at prediction.
        air_below: Windows whose stored values all lie below this are air and can be skipped; ``None`` skips none.
    """

    version: int = PLAN_VERSION
    dataset: str
    modality: str
    channels: tuple[str, ...]
    labels: dict[str, int]
    ignore_label: int | None = None
    slice_axis: str
    spacing_mm: Triple
    intensity: tuple[ChannelIntensity, ...]
    crop_nonzero: bool
    patch_size: Size
    token_stride: int
    decoder_strides: tuple[Size, ...]
    mirror_axes: tuple[int, ...]
    nearest_depth: bool
    rotate_in_plane_only: bool
    air_below: float | None = None
    ranges: ScanRanges | None = None

    def __post_init__(self) -> None:
        validate.check_names(self, PLAN_VERSION)
        validate.check_sizes(self)

    @cached_property
    def label_map(self) -> LabelMap:
        """The classes and the ignore label."""
        return LabelMap(
            {name: (value,) for name, value in self.labels.items() if value != 0},
            self.ignore_label,
            next(name for name, value in self.labels.items() if value == 0),
        )

    @property
    def orientation(self) -> str:
        """Directions of the working grid's axes: ``SPL``, ``AIL`` or ``RIP``."""
        return rules.ORIENTATIONS[self.slice_axis]

    @property
    def label_values(self) -> tuple[int, ...]:
        """File values, ascending; class index k is ``label_values[k]``, 0 the background."""
        return self.label_map.label_values

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names by class index, background first."""
        return self.label_map.class_names

    @property
    def num_classes(self) -> int:
        """Classes, background included."""
        return len(self.labels)

    @property
    def num_channels(self) -> int:
        """Image channels."""
        return len(self.channels)

    def to_dict(self) -> dict[str, Any]:
        """Return plain mappings, lists and numbers in the order of the fields; unused numbers of a rule are omitted."""
        values = asdict(self)
        for channel in values["intensity"]:
            for name in [name for name, value in channel.items() if value is None]:
                del channel[name]
        return {key: _plain(value) for key, value in values.items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Plan:
        """Read a plan from plain values.

        Raises:
            ConfigError: A key is unknown or missing, a value has the wrong type, or values contradict each other.
        """
        check_keys(values, tuple(READERS), "plan")
        missing = [key for key in READERS if key not in values and key not in OPTIONAL]
        if missing:
            raise ConfigError(f"plan.{missing[0]} is missing", expected=", ".join(READERS))
        return cls(**{key: READERS[key](f"plan.{key}", value) for key, value in values.items()})

    def save(self, path: str | Path) -> None:
        """Write human-readable JSON, atomically."""
        write_json(path, self.to_dict())

    @classmethod
    def load(cls, path: str | Path) -> Plan:
        """Read a file of :meth:`save`, which may have been edited by hand.

        Raises:
            ConfigError: The file is missing or is no valid plan.
        """
        values = read_json(path, "plan")
        if not isinstance(values, Mapping):
            raise ConfigError("this is not a plan", file=path, found=type(values).__name__, expected="a mapping")
        try:
            return cls.from_dict(values)
        except ConfigError as error:
            raise ConfigError("the plan file is not valid", file=path, found=error) from error


READERS: dict[str, Callable[[str, Any], Any]] = {
    "version": integer,
    "dataset": text,
    "modality": text,
    "channels": sequence(text),
    "labels": mapping(integer),
    "ignore_label": optional(integer),
    "slice_axis": text,
    "spacing_mm": sequence(number, 3),
    "intensity": sequence(ChannelIntensity.from_dict),
    "crop_nonzero": boolean,
    "patch_size": sequence(integer, 3),
    "token_stride": integer,
    "decoder_strides": sequence(sequence(integer, 3)),
    "mirror_axes": sequence(integer),
    "nearest_depth": boolean,
    "rotate_in_plane_only": boolean,
    "air_below": optional(number),
    "ranges": optional(ScanRanges.from_dict),
}
OPTIONAL = ("version", "ignore_label", "air_below", "ranges")
STATED = (*RULE_OF_NAME, "zscore", "mri", "mr")
"""Names of channels that say how to normalise them, lower case."""
FIXED = ("version", "dataset", "channels", "labels", "ignore_label", "ranges")
"""Fields that come from the data set and cannot be overridden."""


def make_plan(fingerprint: Fingerprint, overrides: Mapping[str, Any] | None = None) -> Plan:
    """Derive the plan by the rules; fields that depend on an overridden field follow it.

    Args:
        fingerprint: The measured data set.
        overrides: Field name -> plain value; ``None`` keeps the rule.

    Raises:
        ConfigError: A field is unknown or fixed, a value has the wrong type, or values contradict each other.
        GeometryError: The voxels of a case are of another order of magnitude than the plan's.
    """
    overridden = read_overrides(overrides or {})
    pick = partial(_pick, overridden)
    cases = fingerprint.cases
    spacings = np.array([case.spacing_mm for case in cases])
    slice_axis = pick("slice_axis", lambda: rules.slice_axis(spacings))
    if slice_axis not in rules.ORIENTATIONS:
        raise ConfigError("plan.slice_axis has no such choice", found=slice_axis, expected="R, A, S")
    axes = list(rules.ANATOMICAL_AXES[slice_axis])
    crop = pick("crop_nonzero", lambda: rules.crop_nonzero(cases))
    shapes = np.array([case.nonzero_shape if crop else case.shape for case in cases])[:, axes]
    spacings = spacings[:, axes]
    nonzero_shapes = np.array([case.nonzero_shape for case in cases])[:, axes]
    spacing = pick("spacing_mm", lambda: nnunet.target_spacing(spacings, nonzero_shapes))
    validate.check_positive("plan.spacing_mm", spacing)
    for case, case_shape, case_spacing in zip(cases, shapes.tolist(), spacings.tolist(), strict=True):
        check_zoom(case_shape, case_spacing, spacing, case=f"case {case.id}")
    median = nnunet.median_shape(spacings, shapes, spacing)
    stride = pick("token_stride", lambda: rules.token_stride(cases, axes, spacing))
    depth = overridden["patch_size"][0] if "patch_size" in overridden else nnunet.start_shape(median, spacing)[0]
    strides = pick(
        "decoder_strides", lambda: rules.decoder_strides(spacing, depth, stride, exact="patch_size" in overridden)
    )
    patch = pick("patch_size", lambda: rules.patch_size(median, spacing, strides[-1]))
    return Plan(
        dataset=fingerprint.dataset,
        modality=pick("modality", lambda: fingerprint.modality),
        channels=fingerprint.channels,
        labels=fingerprint.label_map.to_plain(),
        ignore_label=fingerprint.label_map.ignore_label,
        slice_axis=slice_axis,
        spacing_mm=spacing,
        intensity=pick("intensity", lambda: _intensity(fingerprint, overridden.get("modality"), crop)),
        crop_nonzero=crop,
        patch_size=patch,
        token_stride=stride,
        decoder_strides=strides,
        mirror_axes=pick("mirror_axes", lambda: rules.mirror_axes(cases, axes)),
        nearest_depth=pick("nearest_depth", lambda: nnunet.is_thick_along_depth(spacing)),
        rotate_in_plane_only=pick("rotate_in_plane_only", lambda: rules.rotate_in_plane_only(spacing, patch)),
        air_below=pick("air_below", lambda: rules.air_below(cases, spacing, patch)),
        ranges=ScanRanges.of(cases),
    )


def revise_plan(plan: Plan, overrides: Mapping[str, Any]) -> Plan:
    """Override fields of a plan; decoder strides and patch follow spacing, token stride and patch as in `make_plan`.

    Args:
        plan: The plan.
        overrides: Field name -> plain value; ``None`` keeps the plan's value.

    Raises:
        ConfigError: A field is unknown or fixed, a value has the wrong type, or values contradict each other.
    """
    overridden = read_overrides(overrides)
    changed = {key for key, value in overridden.items() if value != getattr(plan, key)}
    if changed & {"spacing_mm", "token_stride", "patch_size"}:
        spacing, stride, patch = (
            overridden.get(key, getattr(plan, key)) for key in ("spacing_mm", "token_stride", "patch_size")
        )
        strides = rules.decoder_strides(spacing, patch[0], stride, exact="patch_size" in overridden)
        strides = overridden.setdefault("decoder_strides", strides)
        overridden.setdefault(
            "patch_size", tuple(-(-size // step) * step for size, step in zip(patch, strides[-1], strict=True))
        )
    return replace(plan, **overridden)


def check_replaceable(path: str | Path) -> None:
    """Check that a plan would replace nothing but a plan.

    Raises:
        OutputError: The path leads to something else.
    """
    path = Path(path)
    if not exists(path):
        return
    try:
        Plan.load(path)
    except ConfigError as error:
        hint = "choose another file for the plan"
        raise OutputError("an existing file is no plan and is not replaced", file=path, hint=hint) from error


def read_overrides(overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Read and check the overridden fields of a plan; ``None`` overrides nothing.

    Raises:
        ConfigError: A field is unknown or fixed, or a value has the wrong type.
    """
    fixed = [key for key in overrides if key in FIXED]
    if fixed:
        raise ConfigError(f"plan.{fixed[0]} comes from the data set and cannot be overridden")
    check_keys(overrides, [key for key in READERS if key not in FIXED], "plan")
    return {key: READERS[key](f"plan.{key}", value) for key, value in overrides.items() if value is not None}


def plan_settings(word: str = "") -> list[Setting]:
    """Return the fields that a configuration can override, as ``plan.<field>``.

    Args:
        word: Only fields whose key or meaning contains this, in any case.
    """
    rows = [
        Setting(key=f"plan.{name}", type=Plan.__annotations__[name], default="by its rule", meaning=meaning)
        for name, meaning in attribute_docs(Plan).items()
        if name not in FIXED
    ]
    return [one for one in rows if one.contains(word)]


def _pick(overridden: Mapping[str, Any], key: str, rule: Callable[[], Any]) -> Any:
    return overridden[key] if key in overridden else rule()


def _intensity(fingerprint: Fingerprint, modality: str | None, crop: bool) -> tuple[ChannelIntensity, ...]:
    """Return the rule of each channel by its name; an overridden modality applies to all channels."""
    for name in fingerprint.channels:
        if modality is None and name.strip().lower() not in STATED:
            logger.info("channel %s: normalised by z-score, as all channels whose name states nothing else", name)
    return tuple(
        ChannelIntensity.of_channel(modality or name, statistics, nonzero=crop)
        for name, statistics in zip(fingerprint.channels, fingerprint.intensity, strict=True)
    )


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


__all__ = ["PLAN_VERSION", "ChannelIntensity", "Plan", "make_plan", "read_overrides", "revise_plan"]
