"""A small plan, networks that obey the model contract, and scans that show where everything is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.made.folder_runs import GOOD, Image
from tests.made.trained import model_of_session
from volseg.config.schema import ModelConfig
from volseg.inference.predictor import Predictor
from volseg.models.build import build_model
from volseg.models.contracts import SegmentationNetwork, SpacingMm
from volseg.planning.channel import ChannelIntensity
from volseg.planning.plan import Plan

MakePlan = Callable[..., Plan]
LABELS = {"background": 0, "left": 205, "right": 500, "top": 600}


@pytest.fixture
def make_plan() -> MakePlan:
    """A plan for CT-like scans of 2 mm voxels, whose values pass through normalisation unchanged."""

    def make(**changes: Any) -> Plan:
        values: dict[str, Any] = {
            "dataset": "Test",
            "modality": "ct",
            "channels": ("CT",),
            "labels": LABELS,
            "slice_axis": "S",
            "spacing_mm": (2.0, 2.0, 2.0),
            "intensity": (ChannelIntensity(rule="ct", clip_low=-1e4, clip_high=1e4, mean=0.0, std=1.0),),
            "crop_nonzero": False,
            "patch_size": (4, 16, 16),
            "token_stride": 4,
            "decoder_strides": ((1, 1, 1), (1, 2, 2), (2, 4, 4)),
            "mirror_axes": (0, 1, 2),
            "nearest_depth": False,
            "rotate_in_plane_only": False,
        }
        return Plan(**{**values, **changes})

    return make


@pytest.fixture
def build() -> Callable[..., nn.Module]:
    """A real network whose every weight is noise, so that nothing cancels by its initial value."""

    def make(plan: Plan, **settings: Any) -> nn.Module:
        torch.manual_seed(0)
        model = build_model(
            ModelConfig(**{"encoder": "tiny", "weights": "random", "features": 4, "max_features": 8, **settings}), plan
        )
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
        return model.eval()

    return make


class Nearest(SegmentationNetwork):
    """A network without an encoder: class k where a voxel's value is nearest to 100 k."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.register_buffer("levels", torch.arange(float(classes)).view(1, -1, 1, 1, 1))

    def decode(self, taps: list[Tensor], x: Tensor, spacing_mm: SpacingMm | None = None) -> Tensor:
        assert isinstance(self.levels, Tensor)
        return -((x / 100 - self.levels) ** 2)


@pytest.fixture
def nearest_model() -> nn.Module:
    return Nearest(len(LABELS)).eval()


@pytest.fixture
def scan() -> nibabel.Nifti1Image:
    """A scan in RAS, 3 x 2.5 x 2 mm, int16: three blocks at places no flip or turn maps onto each other."""
    data = np.zeros((20, 22, 24), dtype=np.int16)
    data[2:7, 3:9, 4:12] = 100
    data[12:18, 2:7, 6:10] = 200
    data[8:12, 12:20, 16:22] = 300
    data += (np.random.default_rng(0).integers(-20, 20, data.shape)).astype(np.int16)
    affine = np.diag([3.0, 2.5, 2.0, 1.0])
    affine[:3, 3] = (-30.0, 12.0, 7.0)
    return nibabel.Nifti1Image(data, affine)


@pytest.fixture(scope="session")
def trained_model(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    """The model file of ``trained.py``; trained once for all processes of pytest-xdist."""
    folder = tmp_path_factory.getbasetemp()
    return model_of_session(folder.parent if hasattr(request.config, "workerinput") else folder)


@pytest.fixture
def predictor(make_plan: MakePlan, nearest_model: nn.Module, tmp_path: Path) -> Predictor:
    (tmp_path / "model.safetensors").write_bytes(b"stands for the weights")
    predictor = Predictor.from_model(nearest_model, make_plan(), device="cpu")
    predictor.model_files = (tmp_path / "model.safetensors",)
    return predictor


@pytest.fixture
def scans(tmp_path: Path, scan: Image) -> Path:
    folder = tmp_path / "scans"
    folder.mkdir()
    for number, name in enumerate(GOOD):
        data = np.asanyarray(scan.dataobj)[: 14 + number]
        nibabel.save(Image(data, scan.affine), folder / f"{name}.nii.gz")
    return folder
