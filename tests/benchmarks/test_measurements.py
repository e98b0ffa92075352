"""What the benchmarks compute from their measurements: costs of calls, means, differences, counted work."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest

MIB = 2**20


def attribute(module: str, name: str) -> Callable[..., Any]:
    """Import at run time: the folder of the benchmarks is on the path inside of tests only."""
    return getattr(import_module(module), name)  # type: ignore[no-any-return]


def test_cost_of_a_call_counts_the_memory_that_it_adds() -> None:
    cost, result = attribute("shared.measure", "cost_of")(lambda: np.ones(64 * MIB, np.uint8).sum())
    assert result == 64 * MIB
    assert 63 * MIB < cost.above_bytes < 80 * MIB
    assert cost.seconds > 0


def test_a_failing_process_ends_the_command() -> None:
    run_function, make = attribute("shared.measure", "run_function"), attribute("metrics.large_map", "make")
    with pytest.raises(SystemExit, match=r"metrics\.large_map:make .* failed with code 1"):
        run_function(make, {"file": "", "shape": [1], "classes": 1, "largest": 1})


def test_a_process_imports_the_source_that_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "volseg").mkdir()
    (tmp_path / "volseg" / "__init__.py").touch()
    function = "def volseg_file():\n    import volseg\n    return {'file': volseg.__file__}\n"
    (tmp_path / "source_of_volseg.py").write_text(function, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(import_module("shared.record").ROOT)  # has a volseg too
    run_function, volseg_file = (
        attribute("shared.measure", "run_function"),
        attribute("source_of_volseg", "volseg_file"),
    )
    assert run_function(volseg_file, {}, source=tmp_path) == {"file": str(tmp_path / "volseg" / "__init__.py")}


def test_a_process_above_its_limit_is_stopped(tmp_path: Path) -> None:
    settings = {"file": str(tmp_path / "pair.npy"), "shape": [16, 48, 48], "classes": 2, "largest": 900}
    run_function, make = attribute("shared.measure", "run_function"), attribute("metrics.large_map", "make")
    stopped = run_function(make, settings, limit_bytes=MIB)
    assert stopped["stopped"]
    assert stopped["process_bytes"] > MIB
    assert not (tmp_path / "pair.npy").exists()
    assert run_function(make, settings, limit_bytes=2**40) == {"stopped": False}
    prediction, reference = np.load(tmp_path / "pair.npy")
    assert prediction.shape == reference.shape == (16, 48, 48)
    assert np.bincount(reference.ravel())[1:].tolist() == [300, 900]


def test_class_means_skip_undefined_scores_and_failed_cases() -> None:
    rows = [
        {"status": "ok", "class": "liver", "dice": "0.5", "hd95": "2"},
        {"status": "both_empty", "class": "liver", "dice": "", "hd95": ""},
        {"status": "ok", "class": "liver", "dice": "1", "hd95": "4"},
        {"status": "ok", "class": "spleen", "dice": "0.25", "hd95": "1"},
        {"status": "failed", "class": "", "dice": "", "hd95": ""},
    ]
    assert attribute("training.runs", "class_means")(rows) == {
        "liver": {"dice": 0.75, "hd95": 3.0},
        "spleen": {"dice": 0.25, "hd95": 1.0},
        "mean": {"dice": 0.5, "hd95": 2.0},
    }


def test_cells_are_compared_case_by_case_on_shared_seeds() -> None:
    def row(cell: str, seed: int, case: str, dice: str) -> dict[str, Any]:
        return {"budget": "2 steps", "cell": cell, "seed": str(seed), "case": case, "class": "liver", "dice": dice}

    records = [{"budget": "2 steps", "model": m, "seed": s} for m, s in (("default", 0), ("default", 1), ("other", 1))]
    rows = [row("default", 0, "a", "0.9"), row("default", 0, "b", "0.9")]
    rows += [row("default", 1, "a", "0.5"), row("default", 1, "b", "0.6")]
    rows += [row("other", 1, "a", "0.75"), row("other", 1, "b", "")]
    first, other = attribute("training.ablation_cells", "cells_of")(records, rows)["2 steps"]
    np.testing.assert_allclose(attribute("training.ablation_cells", "mean_dice")(first), [[0.7], [0.75]])
    difference = attribute("training.ablation_cells", "difference_to")(first, other)
    np.testing.assert_allclose(difference, [[0.25], [np.nan]])


def test_work_counted_by_hand() -> None:
    expected_work = attribute("prediction.work", "expected_work")
    # 16 slices, 2 x 2 windows in plane: 3 depth windows of 8 slices at half overlap.
    assert expected_work((16, 48, 48), (8, 32, 32), ()) == {"ours": (16 * 4, 12), "monai": (12 * 8, 12)}
    # All eight flips: volseg encodes the four flips in plane.
    assert expected_work((16, 48, 48), (8, 32, 32), (0, 1, 2)) == {"ours": (256, 96), "monai": (768, 96)}
    # One window: nothing is encoded twice.
    assert expected_work((4, 20, 20), (8, 32, 32), ()) == {"ours": (8, 1), "monai": (8, 1)}


def test_neighbours_are_channels() -> None:
    image = np.arange(3, dtype=np.float32).reshape(1, 3, 1, 1)
    stacked = attribute("prediction.monai_inferer", "with_neighbours")(image, 1)
    assert stacked[0, :, :, 0, 0].tolist() == [[0, 0, 1], [0, 1, 2], [1, 2, 2]]


def test_unknown_choices_end_with_a_message(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        attribute("shared.arguments", "check_choices")(argparse.ArgumentParser(), "--parts", ["a", "x"], ("a", "b"))
    assert end.value.code == 2
    assert "--parts: unknown x; choices: a, b" in capsys.readouterr().err


def test_a_process_that_takes_too_long_is_stopped_with_its_children(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = "import subprocess\n\n\ndef wait(file):\n    child = subprocess.Popen(['sleep', '60'])\n"
    source += "    open(file, 'w').write(str(child.pid))\n    child.wait()\n    return {}\n"
    (tmp_path / "waiting.py").write_text(source, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(TimeoutError, match="stopped after 2 s"):
        attribute("shared.measure", "run_function")(
            attribute("waiting", "wait"), {"file": str(tmp_path / "pid")}, limit_s=2
        )
    child = (tmp_path / "pid").read_text(encoding="utf-8")
    for _ in range(100):
        if not Path(f"/proc/{child}").exists():
            return
        time.sleep(0.05)
    state = Path(f"/proc/{child}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[0]
    assert state == "Z"  # ended, and not collected yet


def test_arguments_are_recorded_without_folders_of_the_machine() -> None:
    portable, root = attribute("shared.record", "portable_argument"), import_module("shared.record").ROOT
    assert portable(str(root / "examples" / "x.py")) == "examples/x.py"
    assert portable("/somewhere/else/data") == "data"
    assert portable("--pairs") == "--pairs"


def test_models_are_compared_by_case_over_the_folds_and_seeds_that_both_have() -> None:
    model, difference = attribute("training.comparison", "Model"), attribute("training.comparison", "difference")

    def cell(**cases: list[float]) -> dict[str, dict[str, np.ndarray]]:
        return {"dice": {name: np.array(values) for name, values in cases.items()}}

    ours = model("ours", [], {(0, 0): cell(a=[0.8, 0.6], b=[0.5, np.nan]), (0, 1): cell(a=[0.6, 0.6], b=[0.7, 1.0])})
    ours.scores[1, 0] = cell(c=[0.9, 0.9])
    theirs = model("theirs", [], {(0, 0): cell(a=[0.7, 0.7], b=[0.5, 0.5]), (1, 0): cell(c=[0.5, 1.0])})
    np.testing.assert_allclose(ours.values("dice"), [[0.7, 0.6], [0.6, 1.0], [0.9, 0.9]])  # seeds, then folds
    expected = [[0.1, -0.1], [0, np.nan], [0.4, -0.1]]  # without seed 1, which the other does not have
    np.testing.assert_allclose(difference(ours, theirs, "dice"), expected, atol=1e-12)
