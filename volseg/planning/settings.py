"""What a configuration says about the plan: overridden fields, a ready plan, a limit of memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from volseg.config.reference import Setting, attribute_docs
from volseg.config.sizes import parse_size
from volseg.errors import ConfigError
from volseg.planning.fields import check_keys
from volseg.planning.plan import READERS, Plan

FIXED = ("version", "dataset", "channels", "labels", "ignore_label", "regions", "ranges", "reasons", "cases")
"""Fields that come from the data set and cannot be overridden."""
FREE = tuple(key for key in READERS if key not in FIXED)
"""Fields that can be overridden."""
SOURCES = {"file": "file", "from": "model", "memory": "memory"}
"""Keys of the section ``plan`` that are no fields of a plan, and their attributes here."""


@dataclass(frozen=True, kw_only=True)
class PlanSettings:
    """The section ``plan`` of a configuration.

    Attributes:
        file: Ready plan of this data set, as ``volseg plan --out`` writes it; the cases are not measured again.
        model: Model file or run folder whose plan gives spacing, intensity, patch and strides; the cases are measured
            as well, for classes, channels, mirror axes and ranges. For fine-tuning on other data.
        memory: Memory of a training step, for example ``8GB``: patch and batch are the largest that fit. It counts the
            network of this configuration in the precision of the run, so the plan depends on both. Without it a patch
            has at most 32 x 128 x 128 voxels, and a batch 2 patches; on a GPU they are larger where 8 GB allow it.
        overrides: The other fields, read and checked; ``None`` overrides nothing.
    """

    file: str | None
    model: str | None
    memory: str | None
    overrides: dict[str, Any]

    @property
    def memory_bytes(self) -> int | None:
        """The limit of memory in bytes."""
        return None if self.memory is None else parse_size(self.memory)

    @classmethod
    def read(cls, section: Mapping[str, Any]) -> PlanSettings:
        """Read and check the section.

        Raises:
            ConfigError: A field is unknown or fixed, a value has the wrong type, or a size is none.
        """
        file, model, memory = (section.get(key) for key in ("file", "from", "memory"))
        for key in ("file", "from"):
            if not isinstance(section.get(key), str | None):
                raise ConfigError(f"plan.{key} is not a file name", found=repr(section.get(key)))
        if memory is not None:
            memory = str(memory)
            try:
                parse_size(memory)
            except ConfigError as error:
                expected, hint = "for example 8GB", error.hint
                raise ConfigError("plan.memory is not a size", found=memory, expected=expected, hint=hint) from error
        if file is not None and memory is not None:
            hint = "omit one of them; volseg plan --memory writes a plan that fits"
            raise ConfigError("plan.file and plan.memory are both set", hint=hint)
        if file is not None and model is not None:
            hint = "omit one of them: plan.file is a plan of this data set, plan.from a model of another one"
            raise ConfigError("plan.file and plan.from are both set", hint=hint)
        check_keys([key for key in section if key not in FIXED], (*SOURCES, *FREE), "plan")
        overrides = {key: value for key, value in section.items() if key not in SOURCES}
        return cls(file=file, model=model, memory=memory, overrides=read_overrides(overrides))


def read_overrides(overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Read and check the overridden fields of a plan; ``None`` overrides nothing.

    Raises:
        ConfigError: A field is unknown or fixed, or a value has the wrong type.
    """
    fixed = [key for key in overrides if key in FIXED]
    if fixed:
        hint = "change the data set"
        raise ConfigError(f"plan.{fixed[0]} comes from the data set and cannot be overridden", hint=hint)
    check_keys(overrides, FREE, "plan")
    return {key: READERS[key](f"plan.{key}", value) for key, value in overrides.items() if value is not None}


def plan_settings(word: str = "") -> list[Setting]:
    """Return the fields that a configuration can override, as ``plan.<field>``.

    Args:
        word: Only fields whose key or meaning contains this, in any case.
    """
    sources = [
        Setting(key=f"plan.{key}", type="str | None", default="null", meaning=attribute_docs(PlanSettings)[name])
        for key, name in SOURCES.items()
    ]
    rows = [
        Setting(key=f"plan.{name}", type=Plan.__annotations__[name], default="by its rule", meaning=meaning)
        for name, meaning in attribute_docs(Plan).items()
        if name not in FIXED
    ]
    return [one for one in (*sources, *rows) if one.contains(word)]
