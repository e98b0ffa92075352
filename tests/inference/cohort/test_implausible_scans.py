"""Scans whose values, voxel sizes or logits cannot be right: each fails alone, by name, and the others are finished."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tests.made.allocations import little_memory
from tests.made.folder_runs import GOOD, Image, masks, statuses
from volseg.inference.cohort.run import predict_folder
from volseg.inference.predictor import Predictor


def test_values_and_voxel_sizes(predictor: Predictor, scans: Path, scan: Image, tmp_path: Path) -> None:
    data = np.asanyarray(scan.dataobj).astype(np.float64)
    Image(np.where(data > 200, 1e300, data), scan.affine).to_filename(scans / "huge.nii.gz")
    Image(np.where(data > 200, np.inf, data), scan.affine).to_filename(scans / "infinite.nii.gz")
    for name, spacing_mm in (("thick", 1000.0), ("thin", 1e-6)):
        affine = scan.affine @ np.diag([1, 1, spacing_mm / 2, 1])
        Image(data, affine).to_filename(scans / f"{name}.nii.gz")
    with little_memory():
        summary = predict_folder(predictor, scans, tmp_path / "out")
    bad = ["huge", "infinite", "thick", "thin"]
    assert statuses(summary) == dict.fromkeys(bad, "failed") | dict.fromkeys(GOOD, "done")
    assert masks(tmp_path / "out") == sorted(f"{name}.nii.gz" for name in GOOD)
    errors = {result.case: str(result.error) for result in summary.results}
    assert "too large" in errors["huge"]
    assert "not finite" in errors["infinite"]
    assert "10560 voxels of 1000 x 2.5 x 3 mm, which would become 9.9e+06 of 2 x 2 x 2 mm" in errors["thick"]
    assert "10560 voxels of 1e-06 x 2.5 x 3 mm, which would become 825 of 2 x 2 x 2 mm" in errors["thin"]
    assert all(f"{name}.nii.gz" in errors[name] for name in bad)


def test_logits(
    predictor: Predictor,
    nearest_model: nn.Module,
    scans: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """One NaN in the second of three cases; an argmax would take it for a class."""
    decode, segment, numbers = type(nearest_model).decode, predictor.segment, iter(range(3))
    current = -1

    def next_case(*arguments: Any, **settings: Any) -> Any:
        nonlocal current
        current = next(numbers)
        return segment(*arguments, **settings)

    def with_nan(self: nn.Module, *arguments: Any) -> torch.Tensor:
        logits = decode(self, *arguments)
        if current == 1:
            logits[0, 1, -1, -1, -1] = np.nan
        return logits

    monkeypatch.setattr(predictor, "segment", next_case)
    monkeypatch.setattr(type(nearest_model), "decode", with_nan)
    with caplog.at_level(logging.ERROR):
        summary = predict_folder(predictor, scans, tmp_path / "out")
    assert list(statuses(summary).values()) == ["done", "failed", "done"]
    (failed,) = [result.case for result in summary.results if result.status == "failed"]
    assert f"{failed} failed: the network returns logits that are not finite" in caplog.text
    assert f"{failed}.nii.gz" not in masks(tmp_path / "out")
