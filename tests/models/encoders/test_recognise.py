"""A file of other weights than the encoder's is named."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch

from tests.made.plans import StubPlan
from volseg.config.encoders import CATALOGUE
from volseg.config.schema import ModelConfig
from volseg.errors import ModelFileError
from volseg.models.build import build_model
from volseg.models.encoders.dinov2 import build_dinov2
from volseg.models.encoders.recognise import fitting_encoders

OFFICIAL = [name for name in CATALOGUE if name != "tiny"]


def state_of(name: str) -> dict[str, torch.Tensor]:
    """Return the state dict of an encoder without values."""
    from importlib import import_module

    with torch.device("meta"):
        network = import_module(CATALOGUE[name].module).build(CATALOGUE[name], 3, attend=None, drop_path=0.0)
    return network.state_dict()


@pytest.mark.parametrize("name", OFFICIAL)
def test_every_encoder_is_recognised_behind_a_prefix(name: str, caplog: pytest.LogCaptureFixture) -> None:
    prefix, other = ("image_encoder", "mask_decoder") if name == "medsam_lite" else ("teacher.backbone", "head")
    state = {f"{prefix}.{key}": value for key, value in state_of(name).items()}
    with caplog.at_level(logging.INFO):
        found = fitting_encoders(state | {f"{other}.weight": torch.zeros(1)})
    plain = name.removesuffix("_gelu")
    assert found == [name] if not name.startswith("clip") else [plain, f"{plain}_gelu"]  # files do not tell
    assert caplog.text == ""


def test_a_part_of_an_encoder_is_none() -> None:
    state = state_of("dinov2_s14")
    del state["norm.bias"]
    assert fitting_encoders(state) == []


def test_the_error_names_the_encoder_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save(build_dinov2("tiny").state_dict(), path)
    with pytest.raises(ModelFileError, match="do not fit") as error:
        build_model(ModelConfig(encoder="dinov3_s16", weights=str(path), features=4), StubPlan())
    assert "these are weights of tiny: set model.encoder=tiny" in str(error.value)
    assert "unexpected pos_embed" in str(error.value)


def test_so_does_the_error_for_a_small_file_and_a_large_encoder(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save(build_dinov2("tiny").state_dict(), path)
    with pytest.raises(ModelFileError, match="too small") as error:
        build_model(ModelConfig(encoder="vit_l16", weights=str(path), features=4), StubPlan())
    assert "these are weights of tiny: set model.encoder=tiny" in str(error.value)
