"""The list of all settings with type, default and meaning, read from the schema and the plan."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from typing import Any, get_type_hints

from volseg.config.schema import Config


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One setting.

    Attributes:
        key: Its name in a configuration, with its sections: ``train.lr``.
        type: Its type, as annotated in the schema.
        default: Its default, as written in YAML.
        meaning: What it sets; the text of the schema.
    """

    key: str
    type: str
    default: str
    meaning: str

    def contains(self, word: str) -> bool:
        """Return whether the key or the meaning contains a word, in any case."""
        return word.lower() in self.key.lower() or word.lower() in self.meaning.lower()


def settings(word: str = "") -> list[Setting]:
    """Return the settings in the order of the schema.

    Args:
        word: Only settings whose key or meaning contains this, in any case.
    """
    return [one for one in _settings(Config, "") if one.contains(word)]


def _settings(schema: type, prefix: str) -> Iterator[Setting]:
    meanings, types = attribute_docs(schema), get_type_hints(schema)
    for field in fields(schema):
        if is_dataclass(types[field.name]):
            yield from _settings(types[field.name], f"{prefix}{field.name}.")
        else:
            yield Setting(
                key=prefix + field.name,
                type=str(field.type),
                default=_yaml(_default(field)),
                meaning=meanings[field.name],
            )


def attribute_docs(schema: type) -> dict[str, str]:
    """Return the texts under ``Attributes:`` in the docstring of a class, by attribute.

    Args:
        schema: A class with a Google style docstring.
    """
    _, _, section = inspect.cleandoc(schema.__doc__ or "").partition("Attributes:\n")
    section = section.partition("\n\n")[0]  # the next section follows an empty line
    entries = re.findall(r"^    (\w+): (.*(?:\n     +.*)*)", section, re.MULTILINE)
    return {name: " ".join(text.split()) for name, text in entries}


def _default(field: Field[Any]) -> object:
    return field.default_factory() if field.default_factory is not MISSING else field.default


def _yaml(value: object) -> str:
    """Return a default as YAML has it; every default is a number, a text, a truth value, null or an empty mapping."""
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)
