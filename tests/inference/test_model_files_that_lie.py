"""Model files that claim more than they hold, or whose weights are no numbers: refused by name, at little cost."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from volseg import load
from volseg.errors import DataError, ModelFileError
from volseg.inference.predictor import Predictor
from volseg.io.model_file import save_model
from volseg.planning.plan import Plan

MakePlan = Callable[..., Plan]
SETTINGS = {"encoder": "tiny", "weights": "random", "features": 4, "max_features": 8}
LOAD = """
import resource, sys
import torch
from volseg.errors import ModelFileError
from volseg.inference.predictor import Predictor
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10  # MB on Linux
before = peak()
try:
    Predictor.from_file(sys.argv[1], "cpu")
except ModelFileError as error:
    print(peak() - before, str(error).splitlines()[0])
"""


def write(path: Path, state: dict[str, Any], plan: dict[str, Any], **settings: Any) -> Path:
    metadata = {"config": {"model": {**SETTINGS, **settings}}, "plan": plan, "labels": plan["labels"]}
    save_model(path, state, metadata)
    return path


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss has another unit")
def test_a_small_file_that_names_a_large_network_costs_little_memory(tmp_path: Path, make_plan: MakePlan) -> None:
    """The network that it names has 1.1 billion weights of 4 bytes."""
    path = write(tmp_path / "m.safetensors", {"a": torch.zeros(9)}, make_plan().to_dict(), encoder="dinov2_g14")
    run = subprocess.run([sys.executable, "-c", LOAD, str(path)], capture_output=True, text=True, check=True)
    megabytes, message = run.stdout.split(maxsplit=1)
    assert message == "the weights do not fit the network\n"
    assert int(megabytes) < 200


@pytest.mark.parametrize(
    ("settings", "plan_changes", "message"),
    [
        ({"features": 10**9}, {}, "do not fit|not valid"),
        ({"features": 10**18, "max_features": 10**18}, {}, "do not fit|not valid"),
        ({}, {"patch_size": [10**6, 10**6, 10**6]}, r"patch_size is too large"),
        ({"baseline": "dynunet"}, {"patch_size": [4, 10**6, 10**6]}, r"patch_size is too large"),
        ({}, {"labels": {"background": 0, "liver": 300_000_000}}, "labels"),
        ({}, {"labels": {"background": 0} | {f"c{n}": n for n in range(1, 40_000)}}, "labels"),
        ({}, {"ignore_label": 300_000_000}, "ignore_label"),
    ],
)
def test_absurd_numbers_in_the_metadata(
    tmp_path: Path, make_plan: MakePlan, settings: dict[str, Any], plan_changes: dict[str, Any], message: str
) -> None:
    plan = make_plan().to_dict() | plan_changes
    metadata = {"config": {"model": {**SETTINGS, **settings}}, "plan": plan, "labels": make_plan().labels}
    save_model(tmp_path / "m.safetensors", {"a": torch.zeros(9)}, metadata)
    with pytest.raises(ModelFileError, match=message) as error:
        load(tmp_path / "m.safetensors", device="cpu")
    assert str(tmp_path / "m.safetensors") in str(error.value)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_weight_that_is_no_number(
    tmp_path: Path, make_plan: MakePlan, build: Callable[..., nn.Module], value: float
) -> None:
    state = build(make_plan()).state_dict()
    state["encoder.vit.blocks.1.attn.qkv.weight"][2, 3] = value
    path = write(tmp_path / "m.safetensors", state, make_plan().to_dict())
    with pytest.raises(ModelFileError, match=r"blocks\.1\.attn\.qkv\.weight has values that are not finite") as error:
        load(path, device="cpu")
    assert str(path) in str(error.value)


def test_logits_that_are_no_numbers_fail_the_case(
    make_plan: MakePlan, nearest_model: nn.Module, scan: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    decode = type(nearest_model).decode

    def one_nan(self: nn.Module, *arguments: Any) -> torch.Tensor:
        logits = decode(self, *arguments)
        logits[..., -1, -1, -1] = np.nan
        return logits

    monkeypatch.setattr(type(nearest_model), "decode", one_nan)
    with pytest.raises(DataError, match="logits that are not finite"):
        Predictor.from_model(nearest_model, make_plan(), device="cpu").predict(np.asanyarray(scan.dataobj), scan.affine)
