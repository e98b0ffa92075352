"""Prediction on a GPU against prediction on the CPU."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from volseg.cli.main import main
from volseg.errors import ConfigError
from volseg.geometry.grid import Grid
from volseg.geometry.volume import Volume
from volseg.inference.ensemble import Network
from volseg.inference.options import PredictOptions
from volseg.inference.predictor import Predictor
from volseg.inference.sliding.memory import Schedule
from volseg.inference.sliding.stream import predict_logits
from volseg.io.model_file import save_model
from volseg.models.contracts import SegmentationNetwork
from volseg.planning.plan import Plan

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU with CUDA")]

Build = Callable[..., SegmentationNetwork]
MakePlan = Callable[..., Plan]
SHAPE = (19, 40, 44)


def noise(shape: tuple[int, int, int]) -> NDArray[np.float32]:
    return np.random.default_rng(1).standard_normal((1, *shape)).astype(np.float32)


@pytest.mark.parametrize("axes", [(), (0, 1, 2)], ids=["plain", "mirrored"])
@pytest.mark.parametrize(
    "schedule",
    [Schedule(keep_tokens=False, columns=8), Schedule(windows=2, columns=3, keep_tokens=False), Schedule(windows=1)],
    ids=["whole", "slabs", "kept tokens"],
)
def test_logits_equal_those_of_the_cpu(
    schedule: Schedule, axes: tuple[int, ...], make_plan: MakePlan, build: Build
) -> None:
    plan = make_plan()
    expected = predict_logits(build(plan, adjacent_slices=3), noise(SHAPE), plan, tta_axes=axes)
    model = build(plan, adjacent_slices=3).to("cuda")
    logits = predict_logits(model, noise(SHAPE), plan, tta_axes=axes, device="cuda", schedule=schedule)
    assert (logits - expected).abs().max() < 1e-3


def scan() -> Volume:
    return Volume(300 * noise(SHAPE), Grid(SHAPE, np.diag([3.0, 1.4, 1.7, 1.0])))


def test_masks_and_named_devices(make_plan: MakePlan, build: Build) -> None:
    plan = make_plan()
    for options in (PredictOptions(), PredictOptions(tta=True)):
        on_cpu, on_gpu = (
            Predictor([Network(build(plan), plan)], device=device, precision="32").segment(scan(), options).mask.labels
            for device in ("cpu", "cuda:0")
        )
        assert (on_gpu == on_cpu).mean() > 0.9999
    with pytest.raises(ConfigError, match="device is not available"):
        Predictor.from_model(build(plan), plan, "cuda:99")


def test_out_of_memory_goes_on_with_less(make_plan: MakePlan, build: Build, caplog: pytest.LogCaptureFixture) -> None:
    plan = make_plan()
    predictor = Predictor.from_model(build(plan), plan, "cuda")
    expected = predictor.segment(scan()).mask.labels
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info()
    torch.cuda.set_per_process_memory_fraction(min(1.0, (torch.cuda.memory_reserved() + (24 << 20)) / total))
    try:
        labels = predictor.segment(scan(), PredictOptions(max_device_memory_bytes=free)).mask.labels
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert (labels == expected).mean() > 0.9999
    assert "less memory than estimated" in caplog.text


def test_the_command_takes_a_named_device_and_records_its_memory(
    make_plan: MakePlan, build: Build, scan: nibabel.Nifti1Image, tmp_path: Path
) -> None:
    plan = make_plan(spacing_mm=(4.0, 4.0, 4.0))
    settings = {"encoder": "identity", "features": 4, "max_features": 8}
    metadata = {"config": {"model": settings}, "plan": plan.to_dict(), "labels": plan.labels}
    save_model(tmp_path / "model.safetensors", build(plan, **settings).state_dict(), metadata)
    nibabel.save(scan, tmp_path / "a.nii.gz")
    masks = []
    for name, device in (("cpu", "cpu"), ("gpu", "cuda:0")):
        arguments = ["-m", str(tmp_path / "model.safetensors"), "-i", str(tmp_path / "a.nii.gz")]
        arguments += ["-o", str(tmp_path / name / "masks"), "--device", device, "--precision", "32"]
        assert main(["predict", *arguments]) == 0
        masks.append(np.asarray(nibabel.load(tmp_path / name / "masks" / "a.nii.gz").dataobj))
    assert (masks[0] == masks[1]).mean() > 0.9999
    records = (tmp_path / "gpu" / "masks" / "records.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(records[-1])["peak_device_mb"] > 0
