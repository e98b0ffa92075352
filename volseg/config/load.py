"""Configurations from YAML files, mappings and ``key=value`` overrides; the only module that uses OmegaConf."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import MarkedYAMLError, YAMLError

from volseg.config.keys import check_keys
from volseg.config.origin import COMMAND_LINE, with_origin
from volseg.config.packaged import config_file, hint_of_missing
from volseg.config.reference import settings
from volseg.config.schema import Config
from volseg.errors import ConfigError

DEEPEST = 64
"""Most levels of nested lists and mappings."""
FOUND_LENGTH = 200
_OPENING = (
    yaml.BlockMappingStartToken,
    yaml.BlockSequenceStartToken,
    yaml.FlowMappingStartToken,
    yaml.FlowSequenceStartToken,
)
_OUTER = (yaml.StreamStartToken, yaml.StreamEndToken, yaml.DirectiveToken, yaml.DocumentStartToken)
_CLOSING = (yaml.BlockEndToken, yaml.FlowMappingEndToken, yaml.FlowSequenceEndToken)
_STOPS = ("max_steps", "max_minutes")
TEXT = ("str", "str | None")
"""Types of settings whose overrides are not YAML."""
PLAN_TEXT = ("plan.file", "plan.from", "plan.memory")
"""Settings of the section ``plan`` that are text; its others are fields of a plan."""
NULLS = ("~", "null", "Null", "NULL", "None")
"""What an override of a text writes for ``None``."""

Source = str | Path | Mapping[str, Any] | Config | None
"""A YAML file or the name of a configuration of the package, a nested mapping, or a configuration; ``None`` is the
defaults."""


def load_config(source: Source, overrides: Sequence[str] = (), *, base: Config | None = None) -> Config:
    """Read a configuration, apply ``key=value`` overrides and check everything.

    An override of ``train.max_steps`` also replaces ``train.max_minutes`` of the file, and vice versa.

    Args:
        source: YAML file, name of a configuration of the package (``gpu``), nested mapping or configuration; a file or
            mapping holds only what differs from the defaults. ``None`` starts from the defaults.
        overrides: ``key=value`` strings. Texts, such as paths, are taken as they stand after ``=`` (``null`` is none);
            other values are in YAML syntax.
        base: Configuration in place of the defaults.

    Returns:
        The validated configuration.

    Raises:
        ConfigError: The file is missing or unreadable, a key is unknown (a similar one is suggested), or a value is
            invalid.
    """
    origin = config_file(source) if isinstance(source, str | Path) else None
    values = _source_values(source)
    merged = _merged(values, origin, overrides, {} if base is None else config_to_dict(base))
    try:
        return config_from_dict(merged)
    except ConfigError as error:
        in_file = origin if str(error) == _error_of(values) else None  # for messages without the name of a setting
        raise with_origin(error, source, overrides).in_file(in_file) from error


def given_values(source: Source, overrides: Sequence[str]) -> dict[str, Any]:
    """Return the values that a source and overrides give, nested, without defaults; only their keys are checked.

    Raises:
        ConfigError: The file is missing or unreadable, or a key is unknown.
    """
    origin = config_file(source) if isinstance(source, str | Path) else None
    return _merged(_source_values(source), origin, overrides, {})


def output_folder(source: Source, overrides: Sequence[str]) -> str:
    """Return the setting ``output``; only the keys of source and overrides are checked.

    Raises:
        ConfigError: As :func:`given_values`.
    """
    return str(given_values(source, overrides).get("output", Config.output))


def _source_values(source: Source) -> Mapping[str, Any]:
    if isinstance(source, Config):
        return config_to_dict(source)
    return source if isinstance(source, Mapping) else _read_yaml(config_file(source)) if source is not None else {}


def _merged(
    values: Mapping[str, Any], origin: str | Path | None, overrides: Sequence[str], base: dict[str, Any]
) -> dict[str, Any]:
    """Return the values of a base, a source and overrides; the later count."""
    for layer, where in ((values, origin), (_parse_overrides(overrides), COMMAND_LINE)):
        try:
            check_keys(layer, None)
        except ConfigError as error:
            raise with_origin(error, where).in_file(where) from error
        _clear_other_stop(base, layer)
        base = cast("dict[str, Any]", OmegaConf.to_container(OmegaConf.merge(base, dict(layer))))
    return base


def config_from_dict(values: Mapping[str, Any], origin: str | Path | None = None) -> Config:
    """Build a configuration from plain nested values, as stored in a run folder or a model file.

    Raises:
        ConfigError: A key is unknown, or a value has the wrong type or range.
    """
    check_keys(values, origin)
    config = OmegaConf.structured(Config)
    _unlock(config)
    try:
        return cast(Config, OmegaConf.to_object(OmegaConf.merge(config, dict(values))))
    except ConfigError as error:
        raise error.in_file(origin) from error
    except (OmegaConfBaseException, RecursionError, ValueError, TypeError, OverflowError) as error:
        raise _invalid_value(values, error).in_file(origin) from error


def config_to_dict(config: Config) -> dict[str, Any]:
    """Return the plain nested values of a configuration."""
    return asdict(config)


def config_to_yaml(config: Config) -> str:
    """Return every setting of a configuration as YAML."""
    return OmegaConf.to_yaml(OmegaConf.create(config_to_dict(config)))


def _error_of(values: Mapping[str, Any]) -> str | None:
    """Return the message of what is wrong with a file's values without any override."""
    try:
        config_from_dict(values)
    except ConfigError as error:
        return str(error)
    return None


def _invalid_value(values: Mapping[str, Any], error: Exception) -> ConfigError:
    """Return the error of a value of the wrong type, with the type of the setting."""
    key = str(getattr(error, "full_key", None))
    value: Any = values
    for name in key.split("."):
        value = value.get(name) if isinstance(value, Mapping) else None
    setting = next((one for one in settings() if one.key == key), None)
    if value is None or setting is None:
        found = f"{key}: {str(error).splitlines()[0]}"
        return ConfigError("a configuration value is invalid", found=found[:FOUND_LENGTH])
    found, hint = f"{key}={value}"[:FOUND_LENGTH], f"volseg settings {key} explains it"
    return ConfigError("a configuration value is invalid", found=found, expected=setting.type, hint=hint)


def _reason(error: Exception) -> str:
    """Return why a file cannot be read, with the line of an error of YAML."""
    if isinstance(error, MarkedYAMLError) and error.problem_mark is not None:
        return f"line {error.problem_mark.line + 1}, column {error.problem_mark.column + 1}: {error.problem}"
    return str(error.strerror or error) if isinstance(error, OSError) else str(error)


def _read_yaml(path: Path) -> dict[str, Any]:
    """Read a mapping."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
        _check_tokens(text)
        values = OmegaConf.to_container(OmegaConf.create(text)) if text.strip() else {}
    except FileNotFoundError as error:
        raise ConfigError("the configuration file does not exist", file=path, hint=hint_of_missing(path)) from error
    except (OSError, ValueError, RecursionError, YAMLError, OmegaConfBaseException) as error:
        raise ConfigError(
            "the configuration file cannot be read as YAML",
            file=path,
            found=_reason(error)[:FOUND_LENGTH],
            expected="lines such as 'lr: 0.001', indented by spaces below the name of their group",
        ) from error
    if not isinstance(values, dict):
        raise ConfigError("the configuration file is not a mapping", file=path, found=type(values).__name__)
    return cast("dict[str, Any]", values)


def _check_tokens(text: str) -> None:
    """Refuse aliases (``*name``), of which a few can stand for any amount of memory, deep nesting, and other content.

    Raises:
        ValueError: There is an alias, or more than 64 levels, or the document is not a mapping.
    """
    depth, root = 0, None
    for token in yaml.scan(text):
        if not isinstance(token, _OUTER):
            root = root or token
        if isinstance(token, yaml.AliasToken):
            raise ValueError(f"the alias *{token.value}; write its value out")
        depth += isinstance(token, _OPENING) - isinstance(token, _CLOSING)
        if depth > DEEPEST:
            raise ValueError(f"nested more than {DEEPEST} levels deep")
    if root is not None and not isinstance(root, (yaml.BlockMappingStartToken, yaml.FlowMappingStartToken)):
        raise ValueError("the content is not a mapping")


def _parse_overrides(overrides: Sequence[str]) -> dict[str, Any]:
    """Return the nested values of ``key=value`` strings: text as it stands, other values read as YAML."""
    texts = {setting.key: setting.type for setting in settings() if setting.type in TEXT}
    texts |= dict.fromkeys(PLAN_TEXT, TEXT[1])
    merged = OmegaConf.create({})
    for item in overrides:
        key, _, value = item.partition("=")
        if not key or "=" not in item:
            raise ConfigError(
                "an override is not of the form key=value", found=item, expected="for example train.max_minutes=20"
            )
        try:
            if key in texts:
                OmegaConf.update(merged, key, _text(value, optional=texts[key] != TEXT[0]))
            else:
                merged.merge_with_dotlist([item])
        except (YAMLError, OmegaConfBaseException, IndexError, ValueError, RecursionError) as error:
            found = item[:FOUND_LENGTH]
            raise ConfigError("an override cannot be read", found=found, expected="YAML syntax") from error
    return cast("dict[str, Any]", OmegaConf.to_container(merged))


def _text(value: str, *, optional: bool) -> str | None:
    """Return a text without the quotes around it; ``None`` for nothing, and for ``null`` where that is a value."""
    if not value or (optional and value in NULLS):
        return None
    quoted = len(value) > 1 and value[0] == value[-1] and value[0] in "'\""
    return value[1:-1] if quoted else value


def _clear_other_stop(merged: dict[str, Any], source: Mapping[str, Any]) -> None:
    given = [name for name in _STOPS if (source.get("train") or {}).get(name) is not None]
    if len(given) == 1 and merged.get("train"):
        merged["train"].pop(_STOPS[1 - _STOPS.index(given[0])], None)


def _unlock(config: DictConfig) -> None:
    """Make the nodes of frozen dataclasses writable, so that values can be merged into them."""
    OmegaConf.set_readonly(config, False)
    for key in config:
        if isinstance(config._get_node(key), DictConfig):
            OmegaConf.set_readonly(config[key], False)
