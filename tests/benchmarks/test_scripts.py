"""Every benchmark starts, every part of them imports, and the tables of the results follow from the records."""

from __future__ import annotations

import csv
import json
import re
import runpy
import shutil
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
RESULTS = BENCHMARKS / "results"
SCRIPTS = sorted(BENCHMARKS.glob("*.py"))
PARTS = sorted(path for path in BENCHMARKS.glob("*/*.py") if path.name != "__init__.py")
PAGES = sorted(RESULTS.rglob("*.md"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_help(script: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", [str(script), "--help"])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(script), run_name="__main__")
    assert end.value.code == 0
    assert f"python benchmarks/{script.name}" in capsys.readouterr().out


@pytest.mark.parametrize("part", PARTS, ids=lambda path: f"{path.parent.name}.{path.stem}")
def test_parts_import(part: Path) -> None:
    import_module(f"{part.parent.name}.{part.stem}")


def test_readme_names_every_script() -> None:
    text = (BENCHMARKS / "README.md").read_text(encoding="utf-8")
    assert [script.name for script in SCRIPTS if f"`{script.name}`" not in text] == []


def record_of(page: Path) -> Any:
    return json.loads(page.read_text(encoding="utf-8"))


def folder_tables(module: str, folder: Path, copy: Path) -> str:
    """Return the tables that a module makes of the records of a folder; plots go to the copy."""
    for file in folder.glob("*.json"):
        shutil.copy(file, copy)
    return str(import_module(module).write_tables(copy))


@pytest.mark.parametrize(
    ("topic", "module"),
    [
        ("metrics", "metrics.tables"),
        ("prediction", "prediction.speed_tables"),
        ("prediction_memory", "prediction.memory_tables"),
    ],
)
def test_tables_of_a_folder_follow_from_its_records(topic: str, module: str, tmp_path: Path) -> None:
    text = folder_tables(module, RESULTS / topic, tmp_path)
    assert text == (RESULTS / topic / "README.md").read_text(encoding="utf-8")
    pictures = re.findall(r"!\[[^]]*\]\(([^)]+)\)", text)
    assert pictures
    assert [name for name in pictures if not (tmp_path / name).exists()] == []


@pytest.mark.parametrize(
    ("script", "page"),
    [
        ("attention", "attention/README.md"),
        ("augmentation", "augmentation/README.md"),
        ("bf16_convolution", "bf16_convolution/README.md"),
        ("parity", "parity/README.md"),
        ("probing", "probe/CHAOS_MR.md"),
        ("step", "step/README.md"),
        ("training_memory", "training_memory/dinov2_s14_128.md"),
        ("training_memory", "training_memory/estimate.md"),
        *[("tokens", f"tokens/{label}.md") for label in ("bf16", "float32", "stride4")],
    ],
)
def test_table_follows_from_its_record(script: str, page: str) -> None:
    path = RESULTS / page
    name = f"{script}.json" if path.name == "README.md" else f"{path.stem}.json"
    markdown: Callable[[Any], str] = import_module(script).markdown
    assert markdown(record_of(path.with_name(name))) == path.read_text(encoding="utf-8")


COMPARISONS = [page for folder in ("hippocampus", "chaos_mr") for page in sorted((RESULTS / folder).glob("*.md"))]


@pytest.mark.parametrize("page", COMPARISONS, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_comparison_follows_from_its_records(page: Path) -> None:
    with page.with_suffix(".csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    markdown = import_module("training.compare_tables").markdown
    assert markdown(record_of(page.with_suffix(".json")), rows) == page.read_text(encoding="utf-8")


@pytest.mark.parametrize("page", sorted((RESULTS / "ablation").glob("*.md")), ids=lambda path: path.stem)
def test_ablation_follows_from_its_records(page: Path) -> None:
    cells_of = import_module("training.ablation_cells").cells_of
    markdown = import_module("training.ablation_tables").markdown
    with page.with_suffix(".csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    text = markdown(page.stem, cells_of(record_of(page.with_suffix(".json")), rows))
    assert text == page.read_text(encoding="utf-8")


@pytest.mark.parametrize("page", sorted((RESULTS / "folds").glob("*.md")), ids=lambda path: path.stem)
def test_cross_validation_follows_from_its_record(page: Path) -> None:
    record = record_of(page.with_suffix(".json"))
    assert import_module("folds").markdown(record) == page.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "page",
    [path for topic in ("few_shot", "pretraining") for path in sorted((RESULTS / topic).glob("*.md"))],
    ids=lambda path: path.stem,
)
def test_few_shot_curve_follows_from_its_records(page: Path) -> None:
    with page.with_suffix(".csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    markdown = import_module("training.few_shot_tables").markdown
    assert markdown(page.stem, record_of(page.with_suffix(".json")), rows) == page.read_text(encoding="utf-8")


@pytest.mark.parametrize("page", sorted((RESULTS / "adaptation").glob("*.md")), ids=lambda path: path.stem)
def test_adaptation_follows_from_its_records(page: Path) -> None:
    with page.with_suffix(".csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    markdown = import_module("training.adaptation_tables").markdown
    assert markdown(page.stem, record_of(page.with_suffix(".json")), rows) == page.read_text(encoding="utf-8")


def test_the_page_of_the_first_hour_follows_from_its_records() -> None:
    folder = RESULTS / "first_hour"
    assert import_module("first_hour").page(folder) == (folder / "commands.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("page", PAGES, ids=lambda path: f"{path.parent.name}.{path.stem}")
def test_links_of_results_resolve(page: Path) -> None:
    links = re.findall(r"\]\((?!https?:)([^)#\s]+)", page.read_text(encoding="utf-8"))
    assert [link for link in links if not (page.parent / link).exists()] == []
