"""What a network starts from: nothing, encoder weights, or a whole volseg model."""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.made.encoders import small_entry
from tests.made.plans import StubPlan
from volseg.config.encoders import CATALOGUE
from volseg.config.schema import ModelConfig
from volseg.errors import ConfigError, ModelFileError
from volseg.inference.cohort.records import peak_rss_mb
from volseg.io.encoder_file import save_encoder
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
    settings = {"config": {"model": asdict(config)}, "plan": {"channels": list(plan.channels)}}
    save_model(path, state, {**settings, "labels": labels})
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
    assert "weights from" in caplog.text
    assert "anew" not in caplog.text


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
    assert "starts anew: decoder.heads.0 (2 tensors), decoder.heads.1 (2 tensors), decoder.heads.2" in line
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
    ("given", "found", "expected"),
    [
        ({"adjacent_slices": 1}, "model.adjacent_slices=3", "model.adjacent_slices=1"),
        (
            {"aggregator": "none", "stem": False},
            "model.aggregator=attention, model.stem=true",
            "model.aggregator=none, model.stem=false",
        ),
        ({"encoder": "identity"}, "model.encoder=dinov2_s14", "model.encoder=identity"),
        ({"features": 8}, "model.features=4", "model.features=8"),
        ({"decoder": "linear"}, "model.decoder=unetr", "model.decoder=linear"),
    ],
)
def test_another_architecture_is_refused_with_both_values(
    given: dict[str, Any], found: str, expected: str, tmp_path: Path
) -> None:
    path = tmp_path / "model.safetensors"
    model_file(path)
    with pytest.raises(ModelFileError, match="another architecture") as error:
        start(path, replace(CONFIG, **given))
    lines = [f"  file: {path}", f"  found: {found}", f"  expected: {expected}"]
    assert str(error.value).splitlines()[1:4] == lines
    assert str(error.value).endswith("set " + found.replace(",", ""))


def test_an_encoder_with_other_keys_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.safetensors"
    model_file(path)
    monkeypatch.setitem(CATALOGUE, "dinov2_s14", small_entry(width=32, depth=3, heads=2, grid=5))
    with pytest.raises(ModelFileError, match=r"does not fit the network(.|\n)*missing encoder.vit.blocks.2.attn"):
        start(path)


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
    weights, labels = load_file(path), {"background": 0, "left": 3, "right": 6}
    save_file(weights, path, metadata={"volseg": '{"labels": ["a"]}'})
    with pytest.raises(ModelFileError, match="damaged"):
        start(path)
    for content in ({"config": {}, "plan": {}}, {"config": {"model": asdict(CONFIG)}, "plan": {"channels": []}}):
        save_model(path, weights, {**content, "labels": labels})
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
    with pytest.raises(ModelFileError, match="the folder holds no trained model"):
        weight_file(replace(CONFIG, weights=str(tmp_path)))
    (tmp_path / "run").mkdir()
    save_file({"cls_token": torch.zeros(9)}, tmp_path / "run" / "model.safetensors")
    assert weight_file(replace(CONFIG, weights=str(tmp_path / "run"))) == tmp_path / "run" / "model.safetensors"
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


def test_a_pretraining_of_another_encoder_is_refused_before_the_cases_are_read(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_encoder(path, {"weight": torch.zeros(2)}, {"encoder": "tiny"})
    with pytest.raises(ConfigError, match="pretrained for another encoder") as error:
        weight_file(replace(CONFIG, weights=str(tmp_path)))
    assert error.value.hint == "set model.encoder=tiny"
    assert weight_file(replace(CONFIG, encoder="tiny", weights=str(tmp_path))) == path


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
