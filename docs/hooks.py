"""Pages of the documentation site that are made at build time, and links between the repository and the site.

The site shows the pages of ``docs/`` at its root and every other page at its path in the repository. ``README.md`` is
the home page. Links are written for the repository, where they work on disk and on a code host; this hook rewrites them
for the site. A link to a file that does not exist is a warning, which ``mkdocs build --strict`` turns into an error.
"""

from __future__ import annotations

import argparse
import logging
import posixpath
import re
from importlib import import_module
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
LINK = re.compile(r"(\]\(|src=\"|href=\")(?![a-z]+:|#|/)([^)\s#\"]+)")
COPIED = ("benchmarks", "examples", "volseg/configs")
"""Folders whose tables, pictures and files are part of the site; sources of the package are not."""
COPIED_TYPES = (".md", ".png", ".json", ".jsonl", ".csv", ".yaml", ".py")

# The modules of the Python reference, by topic.
MODULES = {
    "Training, prediction and evaluation in one call each": [
        "volseg.api.planning",
        "volseg.api.training",
        "volseg.api.crossvalidation",
        "volseg.api.prediction",
        "volseg.api.evaluation",
        "volseg.api.probing",
        "volseg.api.datasets",
        "volseg.api.results",
    ],
    "Prediction": ["volseg.inference.predictor", "volseg.inference.options"],
    "Geometry": ["volseg.geometry.grid", "volseg.geometry.volume"],
    "Data sets and plans": ["volseg.io.datasets", "volseg.io.labels", "volseg.planning.plan"],
    "Networks": [
        "volseg.config.encoders",
        "volseg.models.contracts",
        "volseg.models.build",
        "volseg.models.encoders.dinov2",
        "volseg.models.encoders.dinov3",
        "volseg.models.encoders.vit",
        "volseg.models.encoders.clip",
        "volseg.models.lora",
    ],
    "Metrics and evaluation": [
        "volseg.metrics.scores",
        "volseg.metrics.table",
        "volseg.evaluation.folder",
        "volseg.evaluation.summary",
    ],
    "Settings": ["volseg.config.schema", "volseg.config.load"],
    "Errors": ["volseg.errors"],
}

logger = logging.getLogger("mkdocs.hooks.volseg")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that do not lie in ``docs/``."""
    pages = {"settings.md": settings_page(), "commands.md": commands_page(), "reference.md": reference_page()}
    for path, text in pages.items():
        files.append(File.generated(config, path, content=text))
    for name in site_files():
        files.append(File.generated(config, site_path(name), abs_src_path=str(ROOT / name)))
    return files


def site_files() -> list[str]:
    """Return the files outside of ``docs/`` that are part of the site, by their path in the repository."""
    names = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "LICENSE"]
    for folder in COPIED:
        paths = sorted((ROOT / folder).rglob("*"))
        inside = [path.relative_to(ROOT) for path in paths if path.is_file() and path.suffix in COPIED_TYPES]
        names += [path.as_posix() for path in inside if not any(part.startswith((".", "_")) for part in path.parts)]
    return names


def site_path(name: str) -> str:
    """Return where a file of the repository lies on the site."""
    return "index.md" if name == "README.md" else name.removeprefix("docs/")


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Rewrite the links of a page from paths in the repository to paths on the site."""
    here = page.file.src_uri
    source = {"index.md": "README.md"}.get(here, here if (ROOT / here).is_file() else f"docs/{here}")

    def rewrite(match: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(source), match[2]))
        if (ROOT / target).is_dir():
            target = f"{target}/README.md"
        if files.get_file_from_path(site_path(target)) is None:
            logger.warning("%s links to %s, which is not part of the site", source, match[2])
        return match[1] + posixpath.relpath(site_path(target), posixpath.dirname(here) or ".")

    return LINK.sub(rewrite, markdown)


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Remove the roles of docstrings (``:class:`...```), which Markdown does not have."""
    return re.sub(r":\w+:(<code>)~?", r"\1", html)


def settings_page() -> str:
    """Return the table of all settings from the schema, and of the plan's fields that can be overridden."""
    from volseg.config.reference import settings
    from volseg.planning.settings import plan_settings

    sections: dict[str, list[str]] = {}
    for setting in (*settings(), *plan_settings()):
        section = setting.key.rpartition(".")[0] or "general"
        row = _row(f"`{setting.key}`", f"`{_type(setting.type)}`", f"`{setting.default}`", _markdown(setting.meaning))
        sections.setdefault(section, []).append(row)
    lines = [
        "# Settings",
        "Every key of a configuration file. The part before the dot is the section of the file. On the command line,",
        "`key=value` overrides the file: values of type `str` as they stand, others in YAML. The defaults of `plan`",
        "come from the data set.",
    ]
    for section, rows in sections.items():
        lines += ["", f"## {section}", "", "| key | type | default | meaning |", "| --- | --- | --- | --- |", *rows]
    return "\n".join(lines) + "\n"


def commands_page() -> str:
    """Return the options of every command, from its argument parser."""
    from volseg.cli.main import COMMANDS

    lines = [
        "# Commands",
        "Each command is `volseg COMMAND ...`; in a checkout, `python tools/COMMAND.py ...` does the same for `plan`,",
        "`train`, `predict` and `evaluate`. Every command has `--help` and `--debug` (show the traceback of an error).",
    ]
    for name in COMMANDS:
        module = import_module(f"volseg.cli.{name}")
        parser = argparse.ArgumentParser(
            prog=f"volseg {name}",
            description=module.__doc__,
            formatter_class=lambda prog: argparse.HelpFormatter(prog, width=88),
        )
        module.add_arguments(parser)
        lines += ["", f"## volseg {name}", "", "```text", parser.format_help().rstrip(), "```"]
    return "\n".join(lines) + "\n"


def reference_page() -> str:
    """Return the page from which mkdocstrings makes the Python reference."""
    lines = ["# Python reference", "How the parts are used together: [Python](python.md)."]
    for topic, modules in MODULES.items():
        lines += ["", f"## {topic}", ""]
        for module in modules:
            lines += [f"::: {module}", "    options:", "      heading_level: 3", "      show_root_full_path: true", ""]
    return "\n".join(lines) + "\n"


def _type(annotation: str) -> str:
    return annotation.replace(" | ", " or ").replace("None", "null")


def _row(*cells: str) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _markdown(text: str) -> str:
    """Return a docstring or help text as Markdown: single backticks, one line, no tags."""
    return " ".join(re.sub(r":\w+:`~?([^`]*)`", r"`\1`", text).replace("``", "`").replace("<", "&lt;").split())
