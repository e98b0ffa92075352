from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import default_collate

from tests.made.prepared_cases import made_plan, numbered_case
from volseg.cli.main import main
from volseg.config.load import load_config
from volseg.config.schema import Config, ModelConfig, TrainConfig
from volseg.errors import ConfigError
from volseg.inference.sliding.windows import window_starts
from volseg.io.model_file import read_model
from volseg.models.build import build_model
from volseg.models.segmenter import Segmenter
from volseg.preprocessing.cache import CachedCase
from volseg.training.frozen_encoder import FrozenEncoder, pack_taps, tap_shapes, unpack_taps, weights_hash
from volseg.training.samples import token_samples
from volseg.training.state import TrainingState

pytestmark = pytest.mark.usefixtures("no_pictures")

PLAN = made_plan(patch_size=(4, 8, 12), modality="mri", mirror_axes=(0, 2), labels={"background": 0, "a": 1, "b": 2})
MODEL = ModelConfig(encoder="tiny", weights="random", adaptation="frozen", features=4, max_features=8)
FROZEN = ["model.adaptation=frozen", "data.cache_tokens=true"]


def network(seed: int = 0, plan: Any = PLAN, **changes: Any) -> Segmenter:
    torch.manual_seed(seed)
    model = build_model(replace(MODEL, **changes), plan)
    assert isinstance(model, Segmenter)
    return model


def frozen(seed: int = 0, plan: Any = PLAN, **changes: Any) -> FrozenEncoder:
    return FrozenEncoder(network(seed, plan, **changes), plan, changes.get("encoder", MODEL.encoder))


def experiment(folder: Path, **data: Any) -> Any:
    """One case, larger than a patch along every axis, with an image on the scale of a normalised one."""
    made = numbered_case((7, 13, 17), "c0")
    place = folder / "plan" / "c0-123"
    place.mkdir(parents=True, exist_ok=True)
    image = np.random.default_rng(0).normal(size=made.image.shape).astype(np.float32)
    for name, array in {"image": image, "label": made.label, "locations": made.locations}.items():
        np.save(place / f"{name}.npy", array)
    config = Config(device="cpu", model=MODEL, train=TrainConfig(max_steps=3))
    config = replace(config, data=replace(config.data, cache_tokens=True, **data))
    return SimpleNamespace(config=config, plan=PLAN, train_cases=(CachedCase("c0", place),))


def test_taps_come_back_from_the_order_on_disk() -> None:
    taps = [torch.randn(2, 5, 3, 4, 6).half().float(), torch.randn(2, 7, 3, 2, 3).half().float()]
    packed = pack_taps(taps)
    assert (packed.shape, packed.dtype) == ((2, 3, 5 * 4 * 6 + 7 * 2 * 3), torch.float16)
    assert torch.equal(packed[1, 2, 5 * 23 : 5 * 24], taps[0][1, :, 2, 3, 5].half())
    for tap, found in zip(taps, unpack_taps(packed, [(4, 6, 5), (2, 3, 7)]), strict=True):
        assert torch.equal(found, tap)
        assert found.stride(1) == 1  # channels last, so that the decoder's projection copies nothing


@pytest.mark.parametrize("adjacent", [1, 3])
def test_stored_tokens_are_the_encoder_s_within_float16(adjacent: int) -> None:
    model = network(adjacent_slices=adjacent)
    encoder = FrozenEncoder(model, PLAN, "tiny")
    stack = torch.randn(1, 5 + 2 * encoder.halo, 8, 12)
    stored = encoder.encode(stack.numpy())
    assert (stored.shape, stored.dtype) == ((5, *encoder.slice_shape), np.float16)
    with torch.no_grad():
        taps = model.encode(stack[None])
    for tap, found in zip(
        taps, unpack_taps(torch.from_numpy(stored)[None], tap_shapes(model.encoder, 8, 12)), strict=True
    ):
        torch.testing.assert_close(found, tap, rtol=2**-11, atol=1e-7)  # half a unit in the last place


def test_windows_are_those_of_inference() -> None:
    found = frozen().windows((9, 21, 30)).tolist()
    assert found == [[row, column] for row in window_starts(21, 8, 0.5) for column in window_starts(30, 12, 0.5)]


def test_tokens_that_do_not_fit_half_precision_are_refused() -> None:
    encoder = frozen()
    with torch.no_grad():
        encoder._model.encoder.vit.norm.weight.fill_(1e6)  # type: ignore[union-attr]
    with pytest.raises(ConfigError, match="half precision"):
        encoder.encode(np.ones((1, 6, 8, 12), dtype=np.float32))


def test_the_key_follows_what_the_tokens_depend_on_and_nothing_else() -> None:
    base = frozen().key
    assert frozen(aggregator="none", features=8, attention="math").key == base
    wider = made_plan(patch_size=(4, 16, 12))
    eight = made_plan(patch_size=(4, 8, 16))
    coarser = replace(eight, token_stride=8, decoder_strides=(*eight.decoder_strides, (1, 8, 8)))
    others = [frozen(seed=1), frozen(adjacent_slices=1), *(frozen(plan=plan) for plan in (wider, eight, coarser))]
    others += [frozen(encoder="dinov2_s14")]
    assert len({base, *(encoder.key for encoder in others)}) == 1 + len(others)


def test_one_changed_weight_changes_the_key() -> None:
    model = network()
    before = weights_hash(model.encoder)
    with torch.no_grad():
        model.encoder.vit.blocks[2].mlp.fc1.bias[5] += 1e-6
    assert weights_hash(model.encoder) != before
    with torch.no_grad():
        model.encoder.vit.blocks[2].mlp.fc1.bias[5] = 0
    assert weights_hash(model.encoder) == before


def test_a_trained_encoder_is_no_frozen_one() -> None:
    with pytest.raises(AssertionError):
        frozen(adaptation="full")


def test_a_step_on_stored_tokens_is_a_step_through_the_encoder(tmp_path: Path) -> None:
    made = experiment(tmp_path, token_variants=1)
    states = [TrainingState(made.config, PLAN) for _ in range(2)]
    samples = token_samples(made, states[0].model, None, samples=6)
    batch = default_collate([samples[index] for index in range(6)])
    losses = [
        states[0].step([batch], 0, 0.5).loss,
        states[1].step([{k: batch[k] for k in ("image", "label")}], 0, 0.5).loss,
    ]
    torch.testing.assert_close(*losses, rtol=1e-3, atol=0)
    compared = 0
    for one, other in zip(states[0].model.parameters(), states[1].model.parameters(), strict=True):
        if other.grad is not None:
            assert one.grad is not None
            assert (one.grad - other.grad).norm() <= 0.01 * other.grad.norm() + 1e-6
            compared += 1
    assert compared > 20


def test_the_encoder_is_not_run_on_stored_tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = experiment(tmp_path, token_variants=2)
    state = TrainingState(made.config, PLAN)
    samples = token_samples(made, state.model, None, samples=6)
    monkeypatch.setattr(Segmenter, "encode", None)
    assert state.step([default_collate([samples[0], samples[1]])], 0, 0.5).is_finite
    assert {variant.folder.parent for variants in samples.cases for variant in variants} == {
        samples.cases[0][0].folder.parent
    }


def test_the_control_trains_on_the_same_stored_patches(tmp_path: Path) -> None:
    made = experiment(tmp_path, token_variants=3)
    model = replace(MODEL, encoder="identity", adaptation="full")
    control = SimpleNamespace(**{**vars(made), "config": replace(made.config, model=model)})
    states = [TrainingState(each.config, PLAN) for each in (made, control)]
    ours, theirs = (
        token_samples(each, state.model, None, samples=8) for each, state in zip((made, control), states, strict=True)
    )
    for index in range(8):
        assert torch.equal(ours[index]["image"], theirs[index]["image"])
        assert torch.equal(ours[index]["label"], theirs[index]["label"])
    assert theirs[0]["tokens"].shape == (4, 0)
    batch = default_collate([theirs[0], theirs[1]])
    outcomes = [states[1].step([batch], 0, 0.5), TrainingState(control.config, PLAN).step([batch], 0, 0.5)]
    assert outcomes[0].is_finite
    assert torch.equal(outcomes[0].loss, outcomes[1].loss)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.cache_limit=much"], "data.cache_limit is not a size"),
        (["data.cache_limit=0"], "data.cache_limit is not a size"),
        (["data.token_variants=0"], "data.token_variants is out of range"),
        (["data.cache_tokens=true"], r"model\.adaptation=full(.|\n)*set model\.adaptation=frozen"),
        ([*FROZEN, "model.baseline=dynunet"], r"dynunet(.|\n)*data\.cache_tokens=false"),
    ],
)
def test_settings_that_do_not_go_together(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(None, overrides)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("phantoms") / "data"
    assert main(["phantom", str(folder), "--train", "3", "--test", "0"]) == 0
    return folder


def train(data: Path, output: Path, *extra: str) -> int:
    small = ["model.encoder=tiny", "model.features=4", "train.batch_size=1", "data.workers=0", "device=cpu"]
    small += ["plan.patch_size=[8,48,48]", "plan.token_stride=8", "train.validate_cases=1", "train.checkpoint_every=1"]
    small += ["train.max_steps=2", "data.token_variants=2", *FROZEN, *extra]
    config = "demo"
    return main(["train", "--config", config, f"data.root={data}", f"output={output}", *small])


class Stopped(Exception):
    """Ends a run at its checkpoint."""


def _stop(*_: object) -> None:
    raise Stopped


def test_a_run_on_stored_tokens_resumes_bitwise_identically(data: Path, tmp_path: Path) -> None:
    assert train(data, tmp_path / "whole") == 0
    stored = sorted((tmp_path / "preprocessed").rglob("tokens.npy"))
    assert len(stored) == 2 * 2  # cases x variants
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FrozenEncoder, "encode", _stop)  # the second run finds everything
        patch.setattr("volseg.training.loop.write_model", _stop)
        patch.setattr("volseg.training.schedule.Budget.progress", lambda self, step, elapsed_s: step / 2 + (step == 1))
        assert train(data, tmp_path / "parts") == 2
    assert train(data, tmp_path / "parts", "--resume") == 0
    whole, metadata = read_model(tmp_path / "whole" / "model.safetensors")
    parts, _ = read_model(tmp_path / "parts" / "model.safetensors")
    assert metadata["training"]["step"] == 2
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_a_run_whose_cache_would_be_too_large_says_so(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(data, tmp_path / "run", "data.cache_limit=1KB") == 2
    error = capsys.readouterr().err
    assert "2 cases x 2 variants" in error
    assert "at most 1 KB" in error
    assert list((tmp_path / "preprocessed").rglob("tokens.npy")) == []
