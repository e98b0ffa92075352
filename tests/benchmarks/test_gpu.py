"""The benchmark of a GPU, at tiny sizes on the CPU: every section, its page, and sections that fail."""

from __future__ import annotations

import json
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

RESULTS = Path(__file__).resolve().parents[2] / "benchmarks" / "results" / "gpu"
SECTIONS = ("sliding", "scan", "steps", "kernels", "masks")
FURTHER: dict[str, dict[str, Any]] = {"steps": {"data": None}, "masks": {"data": None, "runs": "none"}}


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["benchmarks/gpu.py", "--device", "cpu", "--quick", *arguments])
    return int(import_module("gpu").main())


def record_of(**sections: Any) -> dict[str, Any]:
    empty: dict[str, Any] = {"settings": {}, "rows": [], "error": None, "seconds": 1.0}
    origin = import_module("shared.record").origin()
    return {**origin, "device": "cpu", "size": "tiny", "sections": {key: empty | one for key, one in sections.items()}}


@pytest.mark.parametrize("name", SECTIONS)
@pytest.mark.filterwarnings("default")  # of MONAI and of the profiler
def test_every_section_has_rows_that_become_a_table(name: str) -> None:
    part, markdown = import_module(f"card.{name}"), import_module("card.tables").markdown
    rows = json.loads(json.dumps(list(part.rows(device="cpu", size="tiny", **FURTHER.get(name, {})))))
    assert rows
    title = import_module("card.tables").SECTIONS[name][0]
    page = markdown(record_of(**{name: {"rows": rows}}))
    assert f"## {title}\n\n| " in page
    if name == "sliding":
        limits = {"float32": 1e-3, "bf16": 0.5}  # a CPU with AMX has rows of both
        assert all(row["max_difference"] < limits[row["precision"]] for row in rows)
        assert {row["flips"] for row in rows} == {1, 8}
    if name == "masks":
        assert [(row["equal_voxels"], row["max_difference"]) for row in rows if "CPU" in row["compared"]] == [(1, 0)]
    if name == "scan":
        assert [row["way"] for row in rows] == ["volseg predict", "MONAI"]
        assert all(row["seconds"]["network"] > 0 for row in rows)


def test_the_page_follows_from_the_record(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "--parts", "kernels", "--out", str(tmp_path)) == 0
    record = json.loads((tmp_path / "kernels.json").read_text(encoding="utf-8"))
    page = (tmp_path / "kernels.md").read_text(encoding="utf-8")
    assert import_module("card.tables").markdown(record) == page
    assert page in capsys.readouterr().out
    assert {row["kernel"] for row in record["sections"]["kernels"]["rows"]} == {"sdpa", "xformers", "math"}


def test_a_section_that_fails_or_takes_too_long_is_named_and_the_others_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    gpu = import_module("gpu")
    monkeypatch.setitem(gpu.LIMITS_S, "sliding", {"tiny": 0.1})
    missing = ["--data", str(tmp_path / "none"), "--out", str(tmp_path)]
    assert run(monkeypatch, "--parts", "sliding,steps,kernels", *missing) == 1
    page = (tmp_path / "sliding_steps_kernels.md").read_text(encoding="utf-8")
    assert "## The network over a volume\n\n**Not complete:** stopped after 0.1 s" in page
    assert "## Training\n\n**Not complete:** DataError: " in page
    assert "## Attention\n\n| precision |" in page


def test_without_nnunet_its_section_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    nnunet = import_module("card.nnunet")
    monkeypatch.setattr(nnunet, "FOLDER", tmp_path)
    monkeypatch.setattr(nnunet, "find_spec", lambda _: None)
    with pytest.raises(RuntimeError, match=r"benchmarks/nnunet\.py setup"):
        next(nnunet.rows("cpu", "tiny"))


def test_rows_before_a_failure_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = ["def rows(count):", "    for number in range(count):", "        yield {'number': number}"]
    (tmp_path / "failing_rows.py").write_text("\n".join([*lines, "    raise ValueError('end')"]), encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    write_rows, rows = import_module("card.sections").write_rows, tmp_path / "rows.jsonl"
    assert write_rows("failing_rows:rows", str(rows), {"count": 2}) == {"error": "ValueError: end"}
    assert rows.read_text(encoding="utf-8").splitlines() == ['{"number": 0}', '{"number": 1}']


def test_the_peak_of_replayed_steps_has_the_memory_that_they_write_to(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch counts what it hands out, and a replay asks for nothing."""
    segment = {"device": 0, "segment_pool_id": (0, 1), "total_size": 70 * 10**6, "allocated_size": 10 * 10**6}
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 25 * 10**6)
    monkeypatch.setattr(torch.cuda, "get_allocator_backend", lambda: "native")
    monkeypatch.setattr(torch.cuda, "memory_snapshot", lambda: [segment])
    device = import_module("card.device")
    assert (device.peak_memory_mb("cuda:0"), device.peak_memory_mb("cpu")) == (85, None)


def test_accuracy_becomes_a_table_with_intervals() -> None:
    scores, records = [], []
    for model, dice in (("volseg", 0.8), ("identity", 0.7)):
        hardware = {"cpu": "x", "threads": 1}
        records.append({"model": model, "fold": 0, "seed": 0, "steps": 10, "train_seconds": 5.0, "parameters": 7})
        records[-1] |= {"peak_memory_mb": 1, "hardware": hardware}
        for case in ("a", "b", "c"):
            row = {"model": model, "fold": 0, "seed": 0, "case": case, "class": "organ", "hd95": "1.5", "nsd": "0.9"}
            scores.append({**row, "dice": str(dice)})
    rows = [
        {
            "model": name,
            "records": [record for record in records if record["model"] == name],
            "scores": [score for score in scores if score["model"] == name],
        }
        for name in ("volseg", "identity")
    ]
    page = import_module("card.tables").markdown(record_of(accuracy={"rows": rows}))
    assert "| volseg | 1 | 0.800 [0.800, 0.800] |" in page
    assert "+0.1000" in page


def test_pages_of_results_follow_from_their_records() -> None:
    for page in RESULTS.glob("*.md"):
        name = "gpu.json" if page.name == "README.md" else f"{page.stem}.json"
        record = json.loads(page.with_name(name).read_text(encoding="utf-8"))
        assert import_module("card.tables").markdown(record) == page.read_text(encoding="utf-8")
