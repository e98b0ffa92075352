"""What a network starts from: nothing, encoder weights, or a whole volseg model."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.made.encoders import small_entry
from tests.made.plans import StubPlan
from volseg.config.encoders import CATALOGUE
from volseg.config.schema import ModelConfig
from volseg.errors import ConfigError, ModelFileError
from volseg.inference.cohort.records import peak_rss_mb
from volseg.io.model_file import save_model
from volseg.models.build import build_model, parameter_groups
from volseg.models.encoders import dinov2, download
from volseg.models.start import weight_file

CONFIG = ModelConfig(encoder="dinov2_s14", weights="random", features=4, max_features=8)


@dataclass(frozen=True)
class NamedPlan(StubPlan):
    class_names: tuple[str, ...] = ("background", "left", "right")


@pytest.fixture(autouse=True)
def _small_family(monkeypatch: pytest.MonkeyPatch) -> None:
    url = CATALOGUE["dinov2_s14"].url
    monkeypatch.setitem(CATALOGUE, "dinov2_s14", small_entry(width=32, depth=2, heads=2, grid=5, url=url))


def model_file(path: Path, config: ModelConfig = CONFIG, plan: StubPlan | None = None) -> dict[str, torch.Tensor]:
    """A model file as training writes it; its weights."""
    torch.manual_seed(5)
    plan = plan or NamedPlan()
    state = {key: value + 0.1 for key, value in build_model(config, plan).state_dict().items()}
    values = {name: 3 * index for index, name in enumerate(plan.class_names)}
    labels = dict(sorted(values.items(), reverse=True))  # in a file any order will do
    save_model(path, state, {"config": {}, "plan": {}, "labels": labels})
    return state


def start(path: Path, config: ModelConfig = CONFIG, plan: StubPlan | None = None) -> torch.nn.Module:
    torch.manual_seed(6)
    return build_model(replace(config, weights=str(path)), plan or NamedPlan())


@pytest.mark.parametrize("encoder", ["dinov2_s14", "identity"])
def test_all_weights_of_a_model_with_the_same_classes(
    tmp_path: Path, encoder: str, caplog: pytest.LogCaptureFixture
) -> None:
    config = replace(CONFIG, encoder=encoder)
    expected = model_file(tmp_path / "model.safetensors", config)
    with caplog.at_level(logging.INFO):
        state = start(tmp_path / "model.safetensors", config).state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[key], expected[key]) for key in expected)
    assert "all weights from" in caplog.text
    assert "reinitialised" not in caplog.text


@pytest.mark.parametrize(
    "plan",
    [
        NamedPlan(num_classes=4, class_names=("background", "left", "right", "middle")),
        NamedPlan(class_names=("background", "right", "left")),
    ],
    ids=["more", "other order"],
)
def test_heads_start_anew_when_the_classes_differ(
    tmp_path: Path, plan: NamedPlan, caplog: pytest.LogCaptureFixture
) -> None:
    expected = model_file(tmp_path / "model.safetensors")
    torch.manual_seed(6)
    fresh = build_model(CONFIG, plan).state_dict()
    state = start(tmp_path / "model.safetensors", plan=plan).state_dict()
    heads = {key for key in state if key.startswith("decoder.heads.")}
    assert len(heads) == 2 * 3
    for key, value in state.items():
        assert torch.equal(value, (fresh if key in heads else expected)[key]), key
    (line,) = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert "reinitialised decoder.heads.0.weight, decoder.heads.0.bias, decoder.heads.1" in line
    assert "has the classes background, left, right; the data set has " + ", ".join(plan.class_names) in line


@pytest.mark.parametrize("decoder", ["linear", "unet2d"])
def test_every_decoder_has_a_head_that_can_start_anew(decoder: str, tmp_path: Path) -> None:
    config = replace(CONFIG, decoder=decoder)
    expected = model_file(tmp_path / "model.safetensors", config)
    plan = NamedPlan(num_classes=4, class_names=("background", "left", "right", "middle"))
    state = start(tmp_path / "model.safetensors", config, plan).state_dict()
    assert len(state["decoder.head.weight"]) == 4
    kept = [key for key in state if key.startswith("encoder.")]
    assert all(torch.equal(state[key], expected[key]) for key in kept)


@pytest.mark.parametrize(
    ("config", "plan", "expected"),
    [
        (CONFIG, NamedPlan(num_channels=2), "encoder.vit.patch_embed.proj.weight is (32, 2, 14, 14), expected (32, 4,"),
        (
            replace(CONFIG, adjacent_slices=1),
            NamedPlan(),
            "patch_embed.proj.weight is (32, 2, 14, 14), expected (32, 1,",
        ),
        (replace(CONFIG, aggregator="none"), NamedPlan(), "unexpected aggregator."),
        (replace(CONFIG, encoder="identity"), NamedPlan(), "and 39 more"),
        (replace(CONFIG, features=8), NamedPlan(), "decoder.stem.0.0.0.weight is (4, 1, 3, 3, 3), expected (8,"),
    ],
)
def test_any_other_mismatch_lists_its_keys(tmp_path: Path, config: ModelConfig, plan: NamedPlan, expected: str) -> None:
    path = tmp_path / "model.safetensors"
    model_file(path)
    with pytest.raises(ModelFileError, match="does not fit the network") as error:
        start(path, config, plan)
    assert expected in str(error.value)
    assert str(path) in str(error.value)


def test_a_model_is_a_pretrained_start_and_the_encoder_is_adapted_after_it(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    model_file(path)
    rates = {group["name"]: group["lr"] for group in parameter_groups(start(path), lr=1.0, encoder_lr_scale=0.1)}
    assert rates["encoder, decay"] == 0.1
    assert rates["network, decay"] == 1.0
    frozen = start(path, replace(CONFIG, adaptation="frozen"))
    assert not any(parameter.requires_grad for parameter in frozen.encoder.parameters())


def test_damaged_metadata_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    model_file(path)
    save_file(load_file(path), path, metadata={"volseg": '{"labels": ["a"]}'})
    with pytest.raises(ModelFileError, match="metadata is damaged"):
        start(path)


def test_encoder_weights_without_an_encoder_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save(dinov2.build_dinov2("dinov2_s14").state_dict(), path)
    with pytest.raises(ConfigError, match="no encoder"):
        start(path, replace(CONFIG, encoder="identity"))


def test_weight_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert weight_file(CONFIG) is None
    assert weight_file(replace(CONFIG, encoder="identity", weights=None)) is None
    with pytest.raises(ConfigError, match="is not set for the encoder"):
        weight_file(replace(CONFIG, weights=None))
    with pytest.raises(ModelFileError, match="does not exist"):
        weight_file(replace(CONFIG, weights=str(tmp_path / "none.pth")))
    with pytest.raises(ModelFileError, match="a folder"):
        weight_file(replace(CONFIG, weights=str(tmp_path)))
    with pytest.raises(ConfigError, match="baseline"):
        weight_file(replace(CONFIG, baseline="dynunet", weights="official"))
    for encoder in ("tiny", "identity"):
        with pytest.raises(ConfigError, match=f"model.encoder={encoder}"):
            weight_file(replace(CONFIG, encoder=encoder, weights="official"))
    monkeypatch.setattr(download.Path, "home", lambda: tmp_path)
    cached = tmp_path / ".cache" / "volseg" / "dinov2_vits14_pretrain.pth"
    cached.parent.mkdir(parents=True)
    cached.touch()
    assert weight_file(replace(CONFIG, weights="official")) == cached  # nothing is downloaded twice


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_small_file_for_a_large_encoder_is_refused_before_the_encoder_is_built(tmp_path: Path, suffix: str) -> None:
    """The encoder has 1.1 billion weights of 4 bytes; building it would take gigabytes and half a minute."""
    path = tmp_path / f"small{suffix}"
    (save_file if suffix == ".safetensors" else torch.save)({"cls_token": torch.zeros(9)}, path)
    before = peak_rss_mb()
    with pytest.raises(ModelFileError, match="too small for the encoder") as error:
        start(path, replace(CONFIG, encoder="dinov2_g14"))
    assert str(path) in str(error.value)
    assert peak_rss_mb() - before < 500
