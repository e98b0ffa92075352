"""``volseg describe``: the table, the plan it stands on, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from volseg.cli.main import main
from volseg.planning.plan import Plan

ROOT = Path(__file__).resolve().parents[2]
PLAN = str(ROOT / "benchmarks" / "results" / "hippocampus" / "run_60min" / "plan.json")
CONFIG = "cpu"
TINY = ["model.encoder=tiny", "model.weights=random"]


def described(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[dict[str, list[str]], str]:
    assert main(["describe", *arguments]) == 0
    printed = capsys.readouterr().out
    lines = printed.split("\n\n")[0].splitlines()
    return {line.split()[0]: line.split()[1:] for line in lines}, printed


def test_the_table_of_a_config_and_a_plan(capsys: pytest.CaptureFixture[str]) -> None:
    rows, printed = described(capsys, CONFIG, "--plan", PLAN, *TINY, "model.adaptation=frozen")
    assert list(rows) == ["part", "encoder", "aggregator", "stem", "decoder", "total"]
    numbers = {name: [int(cell.replace(",", "")) for cell in row[:2]] for name, row in rows.items() if name != "part"}
    parts = [row for name, row in numbers.items() if name != "total"]
    assert numbers["total"] == [sum(column) for column in zip(*parts, strict=True)]
    assert numbers["encoder"][1] == 0
    assert rows["encoder"][4] == "1x8x8"
    assert "patch 40 x 56 x 40 voxels, 1 channel, 3 classes" in printed


def test_memory_is_that_of_the_device_in_its_precision(capsys: pytest.CaptureFixture[str]) -> None:
    _, printed = described(capsys, CONFIG, "--plan", PLAN, *TINY, "device=cpu", "precision=32")
    assert "in float32 on cpu, and up to" in printed
    assert "are free on cpu" in printed
    if not torch.cuda.is_available():
        _, printed = described(capsys, CONFIG, "--plan", PLAN, *TINY, "device=cuda")
        assert "in bf16 on cuda; what is free on cuda is not known here" in printed


def test_every_attention_kernel_is_listed_with_what_it_lacks(capsys: pytest.CaptureFixture[str]) -> None:
    _, printed = described(capsys, CONFIG, "--plan", PLAN, *TINY, "device=cpu", "precision=32")
    assert "attention: sdpa, in float32 on cpu, 64 channels per head\n  sdpa runs" in printed
    assert "  xformers does not run: it needs a device with CUDA\n  math runs\n" in printed
    _, printed = described(capsys, CONFIG, "--plan", PLAN, "model.encoder=identity", "model.weights=random")
    assert "attention:" not in printed


def test_overrides_change_network_plan_and_batch(capsys: pytest.CaptureFixture[str]) -> None:
    before, _ = described(capsys, CONFIG, "--plan", PLAN, *TINY, "model.decoder=linear", "train.batch_size=1")
    overrides = [*TINY, "model.decoder=linear", "plan.patch_size=[40, 56, 80]", "train.batch_size=2"]
    after, printed = described(capsys, CONFIG, "--plan", PLAN, *overrides)
    assert "40 x 56 x 80" in printed
    assert float(after["decoder"][2]) == pytest.approx(2 * float(before["decoder"][2]), rel=0.01)
    assert float(after["decoder"][3]) == pytest.approx(4 * float(before["decoder"][3]), rel=0.01)


def test_what_depends_on_an_override_follows_it(capsys: pytest.CaptureFixture[str]) -> None:
    fine, printed = described(capsys, CONFIG, "--plan", PLAN, *TINY, "plan.token_stride=4")
    assert "14 x 10 tokens of 4 x 4 voxels" in printed
    assert fine["encoder"][4] == "1x4x4"
    _, printed = described(capsys, CONFIG, "--plan", PLAN, *TINY, "plan.token_stride=16")
    assert "patch 40 x 64 x 48 voxels" in printed  # rounded up to the new strides


def test_without_a_plan_it_makes_that_of_the_data_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["phantom", str(tmp_path / "data"), "--train", "2", "--test", "0"]) == 0
    data = [f"data.root={tmp_path / 'data'}", "data.workers=0", *TINY]
    assert main(["plan", str(tmp_path / "data"), "--out", str(tmp_path / "plan.json"), "--workers", "0"]) == 0
    capsys.readouterr()
    rows, printed = described(capsys, CONFIG, *data)
    assert f"patch {' x '.join(map(str, Plan.load(tmp_path / 'plan.json').patch_size))} voxels" in printed
    assert rows == described(capsys, CONFIG, "--plan", str(tmp_path / "plan.json"), *TINY)[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([CONFIG], "--plan FILE"),
        ([CONFIG, "--plan", "none.json"], "none.json"),
        ([CONFIG, "--plan", PLAN, "plan.token_stride=5"], "plan.token_stride"),
        ([CONFIG, "--plan", PLAN, "model.decoder=unet"], "unet2d"),
    ],
)
def test_what_it_refuses(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["describe", *arguments]) == 2
    assert message in capsys.readouterr().err
