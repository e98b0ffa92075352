"""Encoder weights from files: strict, inflated, never a silent random start."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.made.allocations import little_memory
from tests.made.encoders import small_entry
from tests.made.plans import StubPlan
from volseg.config.encoders import CATALOGUE
from volseg.config.schema import ModelConfig
from volseg.errors import ModelFileError
from volseg.models.build import build_model
from volseg.models.encoders import dinov2
from volseg.models.encoders.weights import inflate_patch_embedding

SMALL = small_entry(width=32, depth=2, heads=2, grid=5)


@pytest.fixture(autouse=True)
def _small_family(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CATALOGUE, "dinov2_s14", SMALL)


def official_weights() -> dict[str, torch.Tensor]:
    torch.manual_seed(7)
    return dinov2.DinoV2(SMALL).state_dict()


def build(path: Path, **settings: object) -> torch.nn.Module:
    config = ModelConfig(encoder="dinov2_s14", weights=str(path), features=4, max_features=8, **settings)
    return build_model(config, StubPlan())


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("adjacent", [1, 3])
def test_a_grey_volume_gives_the_tokens_of_a_grey_image(tmp_path: Path, suffix: str, adjacent: int) -> None:
    state, path = official_weights(), tmp_path / f"dinov2{suffix}"
    (save_file if suffix == ".safetensors" else torch.save)(state, path)
    model = build(path, adjacent_slices=adjacent).eval()
    original = dinov2.DinoV2(SMALL).eval()
    original.load_state_dict(state)
    grey = torch.randn(1, 1, 16, 16)
    volume = grey[:, :, None].repeat(1, 1, 3 + 2 * model.halo, 1, 1)  # the same slice everywhere
    image = torch.nn.functional.interpolate(grey, size=(28, 28), mode="bilinear").repeat(1, 3, 1, 1)
    with torch.no_grad():
        tokens = model.encode(volume)[-1][0, :, 1].flatten(1).T
        torch.testing.assert_close(tokens, original.patch_tokens(image)[0], rtol=0, atol=1e-5)


def test_inflation_shares_the_rgb_sum_evenly() -> None:
    weight = torch.tensor([1.0, 2.0, 3.0]).reshape(1, 3, 1, 1)
    assert inflate_patch_embedding(weight, 1, 1).flatten().tolist() == [6.0]
    assert inflate_patch_embedding(weight, 2, 1).flatten().tolist() == [3.0, 3.0]
    assert inflate_patch_embedding(weight, 1, 3).flatten().tolist() == [2.0, 2.0]  # slice; previous and next


def test_misfitting_keys_are_all_listed(tmp_path: Path) -> None:
    state = official_weights()
    del state["norm.bias"]
    state["head.weight"] = torch.zeros(1)
    state["cls_token"] = torch.zeros(1, 1, 31)
    path = tmp_path / "other.pth"
    torch.save(state, path)
    with pytest.raises(ModelFileError) as error:
        build(path)
    message = str(error.value)
    assert "missing norm.bias" in message
    assert "unexpected head.weight" in message
    assert "cls_token is (1, 1, 31), expected (1, 1, 32)" in message


def test_values_that_are_no_weights_are_listed(tmp_path: Path) -> None:
    state = official_weights()
    state["norm.bias"] = torch.zeros(32, dtype=torch.int8)
    state["norm.weight"][3] = float("nan")
    path = tmp_path / "quantised.pth"
    torch.save(state, path)
    with pytest.raises(ModelFileError) as error:
        build(path)
    assert "norm.bias is torch.int8" in str(error.value)
    assert "norm.weight has values that are not finite" in str(error.value)


@pytest.mark.parametrize("state", [{3: torch.zeros(2)}, {"cls_token": torch.zeros(2, 2).to_sparse()}, {"a": "b"}])
def test_a_dict_of_something_else_is_no_weight_file(tmp_path: Path, state: dict[object, object]) -> None:
    path = tmp_path / "other.pth"
    torch.save(state, path)
    with pytest.raises(ModelFileError, match="dense tensors by name"):
        build(path)


@pytest.mark.parametrize("content", [None, b"", b"abc", b"error code: 1015", b"not weights", b"PK\x03\x04 cut off"])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_missing_and_damaged_files_are_errors(tmp_path: Path, content: bytes | None, suffix: str) -> None:
    path = tmp_path / f"weights{suffix}"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ModelFileError, match=rf"{path}[\s\S]*hint: "):
        build(path)


def test_no_pickled_code_is_run(tmp_path: Path) -> None:
    path = tmp_path / "module.pth"
    torch.save(dinov2.DinoV2(SMALL), path)
    with pytest.raises(ModelFileError, match="cannot be read") as error:
        build(path)
    assert "weights_only" not in str(error.value)  # torch's advice, which would run the code
    torch.save([torch.zeros(1)], path)
    with pytest.raises(ModelFileError, match="dict of dense tensors"):
        build(path)


def write_pickle(path: Path, call: bytes) -> None:
    """Write an archive of ``torch.save`` whose pickle is the result of a call instead of a dict."""
    torch.save({}, path)
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in parts.items():
            archive.writestr(name, b"\x80\x02" + call + b"." if name.endswith("data.pkl") else content)


def test_files_that_claim_more_values_than_they_hold(tmp_path: Path) -> None:
    """Each would cost gigabytes if it were believed."""
    huge = torch.zeros(1).expand(60_000, 3, 60_000, 60_000)
    torch.save({"patch_embed.proj.weight": huge}, tmp_path / "repeated.pth")
    torch.save({"a": torch.zeros(100_000_000, dtype=torch.int8)}, tmp_path / "stored.pth")
    with (
        zipfile.ZipFile(tmp_path / "stored.pth") as stored,
        zipfile.ZipFile(tmp_path / "compressed.pth", "w", zipfile.ZIP_DEFLATED) as archive,
    ):
        for name in stored.namelist():
            archive.writestr(name, stored.read(name))
    (tmp_path / "stored.pth").unlink()
    write_pickle(tmp_path / "number.pth", b"cbuiltins\nbytearray\n\x8a\x05\x00\xe4\x0b\x54\x02\x85R")  # 10^10
    for path in sorted(tmp_path.iterdir()):
        assert path.stat().st_size < 2_000_000, path
        with little_memory(), pytest.raises(ModelFileError) as error:
            build(path)
        assert str(path) in str(error.value)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers(tmp_path: Path, suffix: str, value: float) -> None:
    state, path = official_weights(), tmp_path / f"dinov2{suffix}"
    state["blocks.1.mlp.fc2.weight"][3, 4] = value
    (save_file if suffix == ".safetensors" else torch.save)(state, path)
    with pytest.raises(ModelFileError, match=r"blocks\.1\.mlp\.fc2\.weight has values that are not finite") as error:
        build(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_numbers_beyond_the_type_of_the_network_are_refused(tmp_path: Path, suffix: str) -> None:
    """They are finite in the file and would be infinite in the network."""
    key, path = "blocks.1.mlp.fc2.weight", tmp_path / f"dinov2{suffix}"
    state = official_weights()
    state[key] = state[key].double().index_fill(0, torch.tensor([3]), 1e300)
    (save_file if suffix == ".safetensors" else torch.save)(state, path)
    with pytest.raises(ModelFileError, match=rf"{key} has values that are not finite[\s\S]*hint: give a file in"):
        build(path)


def test_half_precision_does_not_round_the_sum_over_colours(tmp_path: Path) -> None:
    state = {key: value.half() for key, value in official_weights().items()}
    state["patch_embed.proj.weight"][0] = 40000  # the sum of three is beyond half precision
    save_file(state, tmp_path / "half.safetensors")
    save_file({key: value.float() for key, value in state.items()}, tmp_path / "single.safetensors")
    half, single = (build(tmp_path / f"{name}.safetensors").encoder.state_dict() for name in ("half", "single"))
    assert all(torch.equal(value, single[key]) for key, value in half.items())


def test_quantised_weights_are_loaded_by_value_or_refused(tmp_path: Path) -> None:
    state = official_weights()
    save_file({key: value.to(torch.float8_e4m3fn) for key, value in state.items()}, tmp_path / "eight.safetensors")
    assert build(tmp_path / "eight.safetensors")
    key = "patch_embed.proj.weight"
    save_file({**state, key: (state[key] * 127).to(torch.int8)}, tmp_path / "int.safetensors")
    with pytest.raises(ModelFileError, match="patch_embed"):
        build(tmp_path / "int.safetensors")
