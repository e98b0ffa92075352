"""A pretraining through the command line: files, resuming, errors, and training that starts from its encoder."""

from __future__ import annotations

import json
import logging
import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.made.datasets import save_nifti, write_small_dataset
from tests.pretraining.made import SMALL, write_scans
from volseg.cli.main import main
from volseg.io.encoder_file import read_pretraining
from volseg.models.encoders.weights import inflate_patch_embedding, rgb_patch_embedding
from volseg.pretraining.picture import pretraining_figure
from volseg.pretraining.state import PretrainingState
from volseg.training.checkpoint import load_checkpoint
from volseg.training.run_log import read_metrics

pytestmark = pytest.mark.usefixtures("no_pictures")


def pretrain(scans: Path, output: Path, *settings: str) -> int:
    return main(["pretrain", f"data.root={scans}", f"output={output}", *SMALL, *settings])


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scans(tmp_path_factory.mktemp("pretraining") / "scans", 5)


@pytest.fixture(scope="module")
def run(scans: Path, no_pictures: None) -> Path:
    """A run of two validations."""
    folder = scans.parent / "run"
    settings = ("train.max_steps=20", "train.validate_every=10", "train.lr=2e-3", "pretrain.teacher_momentum=0.9")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("volseg.training.steps.LOG_EVERY", 5)
        assert pretrain(scans, folder, *settings) == 0
    return folder


def test_the_loss_falls_and_the_log_has_its_measures(run: Path) -> None:
    rows = read_metrics(run / "metrics.jsonl", "val_rankme")
    steps = [row for row in rows if "loss" in row]
    assert [row["step"] for row in steps] == [5, 10, 15, 20]
    assert steps[-1]["loss"] < steps[0]["loss"] - 0.05
    measured = [row for row in rows if "val_rankme" in row]
    assert [row["step"] for row in measured] == [0, 10, 20]
    assert measured[0]["val_position_error_of_mean"] == pytest.approx(0.27, abs=0.03)
    assert {"val_effective_rank", "val_assignment_kl", "val_axis_accuracy", "val_cases"} <= measured[0].keys()
    panels = pretraining_figure(rows).axes
    assert [axes.get_ylabel() for axes in panels][:3] == ["loss", "entropy (nats)", "rank"]


def test_the_run_folder_tells_what_was_done(run: Path) -> None:
    names = {path.name for path in run.iterdir()}
    assert names == {
        *("checkpoint", "config.yaml", "inputs.json", "metrics.jsonl", "model.safetensors", "progress.png"),
        *("provenance.json", "splits.json"),
    }
    record = json.loads((run / "provenance.json").read_text())
    assert record["pretraining"]["scans"] == 4
    assert json.loads((run / "splits.json").read_text())["val"] == ["scan0"]
    told = read_pretraining(run / "model.safetensors")
    assert told is not None
    assert (told["data"], told["scans"], told["steps"], told["start"]) == ("scans", 4, 20, "random")
    assert "scan1" not in json.dumps({**told, "command": []})  # names may identify patients
    state = load_file(run / "model.safetensors")
    assert state["patch_embed.proj.weight"].shape == (192, 3, 14, 14)
    assert state["mask_token"].abs().max() > 0


def test_training_starts_from_the_encoder_and_says_so(
    run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_small_dataset(tmp_path / "data")
    length = ["train.max_steps=1", "train.batch_size=1", "train.validate_cases=0", "data.workers=0", "device=cpu"]
    model = ["model.encoder=tiny", "model.adaptation=frozen", "model.features=4", f"model.weights={run}"]
    with caplog.at_level(logging.INFO):
        assert (
            main(["train", "--config", "cpu", f"data.root={data}", f"output={tmp_path / 'seg'}", *length, *model]) < 2
        )
    assert "pretrained: 4 scans of scans, 20 steps of dinov2, from random weights" in caplog.text
    assert "starts anew: all of aggregator, all of decoder: the file holds the weights of an encoder" in caplog.text
    start = json.loads((tmp_path / "seg" / "provenance.json").read_text())["start"]
    assert start["pretraining"]["steps"] == 20
    pretrained = load_file(run / "model.safetensors")
    used = load_file(tmp_path / "seg" / "model.safetensors")
    assert torch.equal(used["encoder.vit.blocks.0.attn.qkv.weight"], pretrained["blocks.0.attn.qkv.weight"])
    weight = inflate_patch_embedding(pretrained["patch_embed.proj.weight"], 1, 3)
    assert torch.equal(used["encoder.vit.patch_embed.proj.weight"], weight)
    # and back: a pretraining that starts from this model has the encoder of before, with equal input channels
    assert pretrain(tmp_path / "none", tmp_path / "x") == 2
    scans = run.parent / "scans"
    again = (
        "train.max_steps=1",
        "train.lr=1e-12",
        f"model.weights={tmp_path / 'seg'}",
        f"data.cache={run.parent / 'c'}",
    )
    assert pretrain(scans, tmp_path / "again", *again, "train.validate_cases=0") == 0
    back = load_file(tmp_path / "again" / "model.safetensors")
    grey = pretrained["patch_embed.proj.weight"].mean(dim=1)
    torch.testing.assert_close(back["patch_embed.proj.weight"][:, 1], grey, atol=1e-6, rtol=0)
    torch.testing.assert_close(back["pos_embed"], pretrained["pos_embed"], atol=1e-6, rtol=0)
    capsys.readouterr()


@pytest.mark.parametrize("adjacent_slices", [1, 3])
def test_the_embedding_of_slices_and_that_of_grey_images_are_inverse(adjacent_slices: int) -> None:
    grey = torch.randn(5, 1, 2, 2).repeat(1, 3, 1, 1)
    for channels in (1, 4):
        slices = inflate_patch_embedding(grey, channels, adjacent_slices)
        torch.testing.assert_close(rgb_patch_embedding(slices, channels), grey)


def test_a_run_stopped_by_sigterm_and_resumed_is_bitwise_that_of_one_piece(scans: Path, tmp_path: Path) -> None:
    cache = f"data.cache={scans.parent / 'preprocessed'}"
    settings = (cache, "train.max_steps=4", "train.validate_every=3", "model.drop_path=0.2", "train.accumulate=2")
    assert pretrain(scans, tmp_path / "whole", *settings) == 0
    step = PretrainingState.step

    def stopped(state: PretrainingState, batches: Any, number: int, spent: float) -> Any:
        if number == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(state, batches, number, spent)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PretrainingState, "step", stopped)
        with pytest.raises(SystemExit) as end:
            pretrain(scans, tmp_path / "parts", *settings)
    assert end.value.code == 143
    assert load_checkpoint(tmp_path / "parts" / "checkpoint").progress.step == 2
    assert main(["pretrain", "--resume", str(tmp_path / "parts")]) == 0
    whole, parts = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "parts"))
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    rows = [read_metrics(tmp_path / name / "metrics.jsonl", "val_rankme") for name in ("whole", "parts")]
    timeless = [[{k: v for k, v in row.items() if k != "elapsed_s"} for row in each] for each in rows]
    assert timeless[0] == timeless[1]


def test_a_finished_run_is_left_as_it_is(
    run: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.read_bytes() for path in run.glob("*.*")}
    with caplog.at_level(logging.INFO):
        assert main(["pretrain", "--resume", str(run)]) == 0
    assert "this run is finished already" in caplog.text
    assert f"model.encoder=tiny model.weights={run}" in capsys.readouterr().out
    assert {path: path.read_bytes() for path in run.glob("*.*")} == before


def test_changed_scans_and_settings_are_refused_on_resuming(
    run: Path, scans: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["pretrain", "pretrain.axes=slice", "--resume", str(run)]) == 2
    assert "pretrain.axes: the run has all, given slice" in capsys.readouterr().err
    other = write_scans(tmp_path / "scans", 4)
    assert main(["pretrain", f"data.root={other}", "--resume", str(run)]) == 2
    assert "not those with which the run began" in capsys.readouterr().err
    held_out = write_scans(tmp_path / "held_out", 5)
    save_nifti(held_out / "scan0.nii.gz", np.random.default_rng(9).normal(100, 10, (20, 22, 18)).astype(np.float32))
    assert main(["pretrain", f"data.root={held_out}", "--resume", str(run)]) == 2
    assert "missing, new or changed: scan0" in capsys.readouterr().err
    assert pretrain(scans, run) == 2
    assert "there is a run in the output folder already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        (["model.encoder=vit_s16"], "a class token and a mask token"),
        (["model.weights=null"], "model.weights is not set"),
        (["train.batch_size=null"], "no plan to take it from"),
        (["train.stop_after=2"], "train.stop_after is for training with labels"),
        (["train.optimizer=sgd"], "train.optimizer is for training with labels"),
        (["pretrain.token_stride=16"], "set pretrain.token_stride=5"),
        (["pretrain.axes=two"], "pretrain.axes has no such choice"),
        (["pretrain.global_tokens=3"], "pretrain.global_tokens is out of range"),
        (["pretrain.teacher_momentum=1"], "pretrain.teacher_momentum is out of range"),
        (["pretrain.held_out=1"], "pretrain.held_out is out of range"),
        (["data.root=null"], "no scans are given"),
    ],
)
def test_what_cannot_work_is_refused_before_the_first_step(
    settings: Sequence[str], text: str, scans: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = f"data.cache={scans.parent / 'preprocessed'}"
    assert pretrain(scans, tmp_path / "run", cache, "train.max_steps=1", *settings) == 2
    assert text in capsys.readouterr().err


def test_scans_of_one_axis_without_held_out_ones(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A single thick scan: slices along its coarsest axis, and no measures."""
    values = np.random.default_rng(0).normal(100, 20, (24, 24, 3)).astype(np.float32)
    save_nifti(tmp_path / "scans" / "a.nii.gz", values, np.diag([1.0, 1.0, 6.0, 1.0]))
    one = ("pretrain.axes=slice", "pretrain.local_views=0", "pretrain.global_tokens=8")
    with caplog.at_level(logging.INFO):
        assert pretrain(tmp_path / "scans", tmp_path / "run", "train.max_steps=2", *one) == 0
    assert "no measures that tell a collapse" in caplog.text
    assert "pretrain.global_tokens is 8, but half of the scans are too small for more than 6" in caplog.text
    assert (tmp_path / "run" / "model.safetensors").exists()
