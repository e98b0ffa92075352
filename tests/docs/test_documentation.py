"""The documentation agrees with the repository: links, module names and file names in it exist."""

from __future__ import annotations

import re
from pathlib import Path
from pkgutil import resolve_name

import pytest

from volseg.io.findings import KINDS

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "benchmarks").glob("*.md")])
CURRENT = [page for page in PAGES if page.name != "CHANGELOG.md"]
"""The changelog names modules that are gone."""


def read(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as code hosts and mkdocs make them."""
    headings = re.findall(r"^#+ (.+)$", read(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_resolve(page: Path) -> None:
    missing = []
    for link in re.findall(r"\]\((?!https?:)([^)\s]+)\)", read(page)):
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        generated = target.parent == ROOT / "docs" and target.name in ("settings.md", "commands.md", "reference.md")
        if not generated and (not target.exists() or (anchor and anchor not in anchors(target))):
            missing.append(link)
    assert missing == []


def exists(name: str) -> bool:
    """Return whether a dotted name is a module or an attribute of one."""
    try:
        resolve_name(name)
    except (ImportError, AttributeError):
        return False
    return True


@pytest.mark.parametrize("page", CURRENT, ids=lambda page: page.name)
def test_python_names_exist(page: Path) -> None:
    names = set(re.findall(r"\bvolseg(?:\.[A-Za-z_]\w*)+", read(page)))
    assert [name for name in sorted(names) if not exists(name)] == []


@pytest.mark.parametrize("page", CURRENT, ids=lambda page: page.name)
def test_files_exist(page: Path) -> None:
    named = re.findall(r"`((?:volseg|tests|tools|configs|examples)/[\w/.]*)`", read(page))
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_modules_of_the_design_exist() -> None:
    """Every module in the tree of docs/design.md lies in that folder of the package."""
    tree = re.search(r"```\nvolseg/\n(.*?)\n\w", read(ROOT / "docs" / "design.md"), re.DOTALL)
    assert tree is not None
    missing, folder = [], ROOT / "volseg"
    for line in tree[1].splitlines():
        indent, name = re.match(r"( *)(\w+/|\w*)", line).groups()  # type: ignore[union-attr]
        if len(indent) == 2:
            package = folder = ROOT / "volseg" / name if name.endswith("/") else ROOT / "volseg"
        elif name.endswith("/"):
            folder = package / name
        missing += [name for name in re.findall(r"\b\w+\.py\b", line) if not (folder / name).is_file()]
    assert missing == []


def test_the_table_of_findings() -> None:
    rows = re.findall(r"^\| `([\w-]+)` \| (\w+) \| (.+) \| (.+) \|$", read(ROOT / "docs" / "checks.md"), re.MULTILINE)
    assert rows == [(name, kind.severity, kind.title, kind.hint) for name, kind in KINDS.items()]
