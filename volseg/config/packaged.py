"""The configurations that are part of the package, by name: ``volseg/configs/NAME.yaml``."""

from __future__ import annotations

from pathlib import Path

from volseg.errors import ConfigError, missing_hint, suggestion

FOLDER = Path(__file__).resolve().parents[1] / "configs"
FOUND_LENGTH = 200
RENAMED = {"default": "gpu", "hippocampus": "cpu", "chaos_mr": "cpu"}
"""Names of earlier versions -> those of today."""


def names() -> list[str]:
    """Return the names of the configurations."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def config_file(source: str | Path) -> Path:
    """Return the file of a configuration that is given by its name, such as ``gpu``, or by its path.

    Raises:
        ConfigError: A name is neither that of a configuration of the package nor that of a file.
    """
    path, text = Path(source), str(source)
    if path.name != text or path.suffix:
        return path
    if text in names():
        return FOLDER / f"{text}.yaml"
    if _is_file(path):
        return path
    new = RENAMED.get(text) or suggestion(text, names())
    raise ConfigError(
        "there is no such configuration",
        found=text[:FOUND_LENGTH],
        expected=f"{', '.join(names())}, or the path of a YAML file",
        hint=f"did you mean {new}?" if new else None,
    )


def _is_file(path: Path) -> bool:
    """Return whether a path leads to a file; one that is too long or holds a NUL does not."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def hint_of_missing(path: Path) -> str:
    """Return a hint for a configuration file that does not exist: the configuration of that name, if there is one."""
    name = RENAMED.get(path.stem, path.stem)
    if name in names() and path.parent.name in ("", "configs"):
        return f"give {name}, without folder and ending, for the configuration of the package"
    return missing_hint(path)
