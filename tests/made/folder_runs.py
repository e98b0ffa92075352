"""Folders of scans for the tests of folder prediction, and what a run left."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from volseg.geometry.volume import Volume
from volseg.inference.cohort.records import Summary
from volseg.inference.options import PredictOptions
from volseg.inference.predictor import Predictor, Segmentation
from volseg.planning.plan import Plan

MakePlan = Callable[..., Plan]
Image = nibabel.Nifti1Image
GOOD = ["a scan with spaces", "größe_日本", "plain"]


def add_bad_files(folder: Path, scan: Image) -> None:
    whole = (folder / "plain.nii.gz").read_bytes()
    (folder / "cut off.nii.gz").write_bytes(whole[: len(whole) // 2])
    nibabel.save(Image(np.asanyarray(scan.dataobj)[:, :, 0], scan.affine), folder / "flat.nii.gz")
    nibabel.save(Image(np.full((8, 8, 8), 3, np.int16), scan.affine), folder / "empty.nii.gz")


def statuses(summary: Summary) -> dict[str, str]:
    return {result.case: result.status for result in summary.results}


def on_disk(summary: Summary) -> dict[str, Any]:
    document = json.loads(summary.path.read_text(encoding="utf-8"))
    assert isinstance(document, dict)
    return document


def masks(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.suffix == ".gz")


def writing_extras(predictor: Predictor, monkeypatch: pytest.MonkeyPatch) -> list[tuple[bool, bool]]:
    """The predictor, writing something where probabilities and uncertainty go, as a network's would be."""
    segment = predictor.segment
    calls = []

    def segment_and_write(
        volume: Volume,
        options: PredictOptions,
        *,
        probabilities: Path | None = None,
        uncertainty: Path | None = None,
    ) -> Segmentation:
        calls.append((probabilities is not None, uncertainty is not None))
        for path in (probabilities, uncertainty):
            if path is not None:
                path.write_bytes(b"values")
        return segment(volume, options)

    monkeypatch.setattr(predictor, "segment", segment_and_write)
    return calls


def change_model(predictor: Predictor, scans: Path, out: Path) -> None:
    predictor.model_files[0].write_bytes(b"other weights")
