"""Postprocessing belongs to the model: validation applies it, and the model file carries it."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from torch import Tensor

from volseg.config.schema import Config, DataConfig, ModelConfig, PostprocessConfig, TrainConfig
from volseg.errors import ConfigError
from volseg.inference.predictor import Predictor
from volseg.io.datasets import Case, Dataset
from volseg.io.labels import make_label_map
from volseg.models.build import build_model
from volseg.models.contracts import SegmentationNetwork, SpacingMm
from volseg.planning.channel import ChannelIntensity
from volseg.planning.plan import Plan
from volseg.postprocessing.rules import Postprocessing
from volseg.training.checkpoint import RunProgress
from volseg.training.experiment import Experiment, prepare
from volseg.training.loop import write_model
from volseg.training.validation import validate

LABELS = {"background": 0, "organ": 7}
PLAN = Plan(
    dataset="Test",
    modality="ct",
    channels=("CT",),
    labels=LABELS,
    slice_axis="S",
    spacing_mm=(1.0, 1.0, 1.0),
    intensity=(ChannelIntensity(rule="ct", clip_low=-1e4, clip_high=1e4, mean=0.0, std=1.0),),
    crop_nonzero=False,
    patch_size=(8, 16, 16),
    token_stride=4,
    decoder_strides=((1, 1, 1), (1, 2, 2), (2, 4, 4)),
    mirror_axes=(),
    nearest_depth=False,
    rotate_in_plane_only=False,
)


class Bright(SegmentationNetwork):
    """The organ is where the image is bright."""

    def decode(self, taps: list[Tensor], x: Tensor, spacing_mm: SpacingMm | None = None) -> Tensor:
        return torch.cat([50 - x, x - 50], dim=1)


@pytest.fixture
def case(tmp_path: Path) -> Case:
    """An organ, and an island as bright as the organ that is none."""
    label = np.zeros((16, 16, 8), np.uint8)
    label[2:8, 2:8, 2:6] = 7
    image = np.where(label, 100, 0).astype(np.int16)
    image[12:14, 12:14, 2:4] = 100
    for name, data in (("image", image), ("label", label)):
        nibabel.save(nibabel.Nifti1Image(data, np.eye(4)), tmp_path / f"{name}.nii.gz")
    return Case("a", (tmp_path / "image.nii.gz",), tmp_path / "label.nii.gz")


def experiment(case: Case, folder: Path, settings: PostprocessConfig) -> Experiment:
    model = ModelConfig(encoder="identity", weights="random", features=4, max_features=8)
    config = Config(device="cpu", model=model, postprocess=settings)
    return Experiment(
        config, folder, Dataset("Test", folder, (case,), ("CT",), make_label_map(LABELS)), PLAN, (), (case,)
    )


def test_validation_scores_what_a_user_would_get(case: Case, tmp_path: Path) -> None:
    plain = experiment(case, tmp_path, PostprocessConfig())
    cleaned = experiment(case, tmp_path, PostprocessConfig(largest_component="all"))
    device = torch.device("cpu")
    assert validate(Bright(), plain, device, 1)["val_dice"] == pytest.approx(2 * 144 / (144 + 152), abs=1e-5)
    assert validate(Bright(), cleaned, device, 1)["val_dice"] == 1.0


def test_validation_reads_labels_in_the_order_of_their_image(case: Case, tmp_path: Path) -> None:
    label = nibabel.load(case.label)
    nibabel.save(label.as_reoriented(np.array([[2, -1], [0, 1], [1, -1]])), case.label)
    cleaned = experiment(case, tmp_path, PostprocessConfig(largest_component="all"))
    assert validate(Bright(), cleaned, torch.device("cpu"), 1)["val_dice"] == 1.0


def test_the_model_file_carries_it(case: Case, tmp_path: Path) -> None:
    settings = PostprocessConfig(largest_component="all", min_volume_ml=2)
    run = experiment(case, tmp_path, settings)
    path = write_model(run, build_model(run.config.model, PLAN), {}, RunProgress(), "model.safetensors")
    expected = Postprocessing(largest_component=("organ",), min_volume_ml={"organ": 2.0})
    assert Predictor.from_file(path, device="cpu").postprocessing == expected


def test_a_misspelt_class_shows_before_anything_is_done(case: Case, tmp_path: Path) -> None:
    for kind, path in (("images", case.images[0]), ("labels", case.label)):
        assert path is not None
        (tmp_path / "data" / kind).mkdir(parents=True)
        (tmp_path / "data" / kind / "a.nii.gz").write_bytes(path.read_bytes())
    (tmp_path / "data" / "dataset.json").write_text('{"labels": {"background": 0, "organ": 7}, "modality": "CT"}')
    config = Config(
        output=str(tmp_path / "run"),
        device="cpu",
        data=DataConfig(root=str(tmp_path / "data")),
        model=ModelConfig(encoder="identity"),
        train=TrainConfig(max_steps=1),
        postprocess=PostprocessConfig(fill_holes=["organs"]),
    )
    with pytest.raises(ConfigError, match="did you mean organ"), prepare(config):
        pass
    assert not (tmp_path / "run").exists()
