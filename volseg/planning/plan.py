"""The plan: all decisions that depend on the data set; it is stored with the model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from volseg.errors import ConfigError, OutputError
from volseg.io.json_files import read_json, write_json
from volseg.io.labels import LabelMap
from volseg.io.paths import exists
from volseg.planning import rules, validate
from volseg.planning.channel import ChannelIntensity
from volseg.planning.fields import boolean, check_keys, integer, mapping, number, optional, sequence, text
from volseg.planning.fingerprint import Triple
from volseg.planning.ranges import ScanRanges

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
        labels: Value of each class in masks by name, background (0) included.
        regions: Label values of each class where classes are regions, in the order in which masks are painted; each
            paints its value in ``labels``. ``None`` where classes exclude each other.
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
        air_below: Windows whose stored values all lie below this are air and can be skipped; ``None`` skips none.
        batch_size: Patches per training step.
        ranges: What the training scans were like; scans that differ are named at prediction.
        reasons: Why each field has its value, in a sentence.
        cases: Names of the cases that were measured; model files leave them out.
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
    batch_size: int = 2
    ranges: ScanRanges | None = None
    regions: dict[str, tuple[int, ...]] | None = None
    reasons: dict[str, str] = field(default_factory=dict, compare=False)
    cases: tuple[str, ...] = field(default=(), compare=False)

    def __post_init__(self) -> None:
        validate.check_names(self, PLAN_VERSION)
        validate.check_sizes(self)

    @cached_property
    def label_map(self) -> LabelMap:
        """The classes and the ignore label."""
        background = next(name for name, value in self.labels.items() if value == 0)
        if self.regions is not None:
            order = tuple(self.labels[name] for name in self.regions)
            return LabelMap(self.regions, self.ignore_label, background, order)
        return LabelMap(
            {name: (value,) for name, value in self.labels.items() if value != 0},
            self.ignore_label,
            background,
        )

    @property
    def orientation(self) -> str:
        """Directions of the working grid's axes: ``SPL``, ``AIL`` or ``RIP``."""
        return rules.ORIENTATIONS[self.slice_axis]

    @property
    def label_values(self) -> tuple[int, ...]:
        """Values in label files, ascending; class index k is ``label_values[k]``, 0 the background."""
        return self.label_map.label_values

    @property
    def mask_values(self) -> tuple[int, ...]:
        """Values in masks: the background's, and that of each class in the order of the network's outputs."""
        return self.label_values if self.regions is None else tuple(self.label_map.to_plain().values())

    @property
    def region_indices(self) -> tuple[tuple[int, ...], ...]:
        """Class indices of each region; nothing where classes exclude each other."""
        return self.label_map.region_indices

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the network's outputs: the classes, after the background where they exclude each other."""
        return self.label_map.class_names

    @property
    def num_classes(self) -> int:
        """Outputs of the network: the classes, and the background where they exclude each other."""
        return len(self.class_names)

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
    "batch_size": integer,
    "ranges": optional(ScanRanges.from_dict),
    "regions": optional(mapping(sequence(integer))),
    "reasons": mapping(text),
    "cases": sequence(text),
}
OPTIONAL = ("version", "ignore_label", "air_below", "batch_size", "ranges", "regions", "reasons", "cases")


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


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value
