"""Keys of a configuration: unknown ones are refused with a suggestion."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, cast, get_origin, get_type_hints

from volseg.config.reference import settings
from volseg.config.schema import Config
from volseg.errors import ConfigError, suggestion

OTHER_WORDS = {
    "learning_rate": "lr",
    "initial_lr": "lr",
    "steps": "max_steps",
    "iterations": "max_steps",
    "epochs": "max_steps",
    "max_epochs": "max_steps",
    "num_epochs": "max_steps",
    "minutes": "max_minutes",
    "num_workers": "workers",
    "pretrained": "weights",
}
"""What other programs call a setting."""


def check_keys(values: Mapping[str, Any], origin: str | Path | None, schema: type = Config, prefix: str = "") -> None:
    """Check that all keys of nested values are settings, and that no value is an interpolation.

    Args:
        values: The values.
        origin: Where they come from, for the message.
        schema: The section that they are for.
        prefix: Its name with a final dot, or nothing.

    Raises:
        ConfigError: A key is unknown (a similar one is suggested), a section is no mapping, or a text holds ``${``.
    """
    hints = get_type_hints(schema)
    for key, value in values.items():
        _check_no_interpolation(f"{prefix}{key}", value, origin)
        if key not in hints:
            similar = _similar_key(key, prefix, hints)
            raise ConfigError(
                f"unknown configuration key '{prefix}{key}'",
                file=origin,
                expected=f"one of {', '.join(hints)}",
                hint=f"did you mean '{similar}'?" if similar else None,
            )
        group = is_dataclass(hints[key])
        if (group or get_origin(hints[key]) is dict) and not isinstance(value, Mapping):
            example = next(iter(get_type_hints(hints[key]))) if group else "token_stride"
            hint = f"set keys of the group, such as {prefix}{key}.{example}=..."
            raise ConfigError(f"'{prefix}{key}' is a group of keys", file=origin, found=value, hint=hint)
        if group:
            check_keys(value, origin, cast(type, hints[key]), f"{prefix}{key}.")


def _similar_key(key: str, prefix: str, hints: Mapping[str, Any]) -> str | None:
    """Return the setting that an unknown key may mean: by another word for it, in another section, or misspelt."""
    name = OTHER_WORDS.get(key, key)
    keys = [setting.key for setting in settings() if setting.key.rpartition(".")[2] == name]
    if keys:
        return next((one for one in keys if one == prefix + name), keys[0])
    similar = suggestion(key, hints)
    return prefix + similar if similar else None


def _check_no_interpolation(key: str, value: Any, origin: str | Path | None) -> None:
    """Refuse OmegaConf's ``${...}``, which would read other keys or environment variables."""
    items = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list | tuple) else ()
    for name, item in items:
        _check_no_interpolation(f"{key}.{name}", item, origin)
    if isinstance(value, str) and "${" in value:
        hint = "write the value out"
        raise ConfigError(f"'{key}' holds an interpolation, which is not read", file=origin, found=value, hint=hint)
