"""Attention kernels: equal numbers, their layouts, and a clear error where one cannot run."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from tests.made.plans import StubPlan
from volseg.config.schema import Config, ModelConfig, TrainConfig
from volseg.device import has_native_bf16
from volseg.errors import ConfigError, MissingExtraError
from volseg.models.attention import attention_function, kernel_states, reference_attention, sdpa, try_attention
from volseg.models.build import build_model, for_prediction
from volseg.models.kernels import SHORT
from volseg.models.xformers_kernel import load_cuda_runtime
from volseg.training.state import TrainingState

TINY = {"encoder": "tiny", "weights": "random", "features": 4, "max_features": 8}
Install = Callable[[Callable[..., torch.Tensor]], None]


def tokens(*, heads: int = 3, count: int = 5, size: int = 8, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    made = torch.randn(3, 2, heads, count, size, generator=generator, dtype=torch.float64)
    return [part.requires_grad_() for part in made.unbind()]


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Install:
    """Replace ``xformers.ops`` by a module with another kernel."""

    def put(kernel: Callable[..., torch.Tensor]) -> None:
        module = ModuleType("xformers.ops")
        module.memory_efficient_attention = kernel  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "xformers.ops", module)

    return put


def heads_third(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """What xformers computes from (B, N, heads, E)."""
    return F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (query, key, value))).transpose(1, 2)


def cuda_only(query: torch.Tensor, *_: torch.Tensor) -> torch.Tensor:
    raise NotImplementedError(f"no operator for {query.device}")


def test_the_reference_equals_attention_written_as_a_loop() -> None:
    query, key, value = (x.detach() for x in tokens())
    expected = torch.zeros_like(value)
    for b, head, i in torch.cartesian_prod(torch.arange(2), torch.arange(3), torch.arange(5)).tolist():
        weights = [torch.exp(query[b, head, i] @ key[b, head, j] / 8**0.5) for j in range(5)]
        expected[b, head, i] = sum(w * value[b, head, j] for j, w in enumerate(weights)) / sum(weights)
    torch.testing.assert_close(reference_attention(query, key, value), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("count", "size"), [(1, 64), (5, 8), (257, 64)])
def test_sdpa_equals_math_in_values_and_gradients(count: int, size: int) -> None:
    one, other = tokens(count=count, size=size), tokens(count=count, size=size)
    for attend, inputs in ((sdpa, one), (reference_attention, other)):
        attend(*inputs).square().sum().backward()
    torch.testing.assert_close(sdpa(*one), reference_attention(*other), rtol=0, atol=1e-12)
    for x, y in zip(one, other, strict=True):
        torch.testing.assert_close(x.grad, y.grad, rtol=0, atol=1e-11)


@pytest.mark.parametrize("count", [5, SHORT, SHORT + 1])
def test_sdpa_in_bf16_is_as_near_as_bf16_can_be(count: int) -> None:
    exact, rounded = (
        tokens(count=count, size=64),
        [x.detach().bfloat16().requires_grad_() for x in tokens(count=count, size=64)],
    )
    for inputs in (exact, rounded):
        sdpa(*inputs).sum().backward()
    pairs = [(sdpa(*rounded), sdpa(*exact)), *((x.grad, y.grad) for x, y in zip(rounded, exact, strict=True))]
    for ours, theirs in pairs:
        assert ours is not None
        assert theirs is not None
        torch.testing.assert_close(ours.double(), theirs, rtol=0, atol=2**-6 * theirs.abs().max().item())


def test_the_name_decides_and_not_what_is_installed(install: Install) -> None:
    install(heads_third)
    assert attention_function("sdpa") is sdpa
    assert attention_function("math") is reference_attention
    with pytest.raises(ConfigError, match="sdpa, xformers, math"):
        attention_function("flash")


def test_xformers_is_imported_only_when_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "xformers.ops", None)  # an import of it fails
    build_model(ModelConfig(**TINY), StubPlan(), device="cpu")
    with pytest.raises(MissingExtraError, match=r"pip install 'volseg\[xformers\]'") as caught:
        build_model(ModelConfig(**TINY, attention="xformers"), StubPlan())
    assert isinstance(caught.value, ConfigError)
    assert "model.attention=xformers" in str(caught.value)


@pytest.mark.parametrize(
    ("error", "found"),
    [
        (OSError("libcudart.so.12: cannot open shared object file"), r"found: libcudart\.so\.12"),
        (AttributeError("module 'torch' has no attribute 'x'"), "found: AttributeError: module 'torch' has no"),
    ],
)
def test_a_library_that_cannot_be_loaded_is_an_error_of_ours(
    error: Exception, found: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_: str) -> ModuleType:
        raise error

    monkeypatch.setattr("volseg.extras.importlib.import_module", broken)
    with pytest.raises(MissingExtraError, match=rf"cannot be loaded\n(.|\n)*{found}"):
        attention_function("xformers")


def test_xformers_gets_heads_third_and_its_result_is_turned_back(install: Install) -> None:
    shapes = []

    def kernel(*inputs: torch.Tensor) -> torch.Tensor:
        shapes.extend(tuple(x.shape) for x in inputs)
        return heads_third(*inputs)

    install(kernel)
    inputs = tokens(heads=3, count=5, size=8)
    torch.testing.assert_close(attention_function("xformers")(*inputs), sdpa(*inputs), rtol=0, atol=0)
    assert shapes == [(2, 5, 3, 8)] * 3  # (B, N, heads, E)


def test_encoder_and_depth_attention_use_the_chosen_kernel(install: Install) -> None:
    lengths = []

    def kernel(*inputs: torch.Tensor) -> torch.Tensor:
        lengths.append(inputs[0].shape[1])
        return heads_third(*inputs)

    install(kernel)
    networks = []
    for attention in ("sdpa", "xformers", "math"):
        torch.manual_seed(0)
        networks.append(build_model(ModelConfig(**TINY, attention=attention), StubPlan()).double().eval())
        torch.nn.init.normal_(networks[-1].aggregator.proj.weight, generator=torch.Generator().manual_seed(1))
    x = torch.randn(1, 1, 8, 16, 16, dtype=torch.float64)
    with torch.no_grad():
        expected, by_xformers, by_math = (network(x) for network in networks)
    assert lengths == [5, 5, 5, 5, 6]  # four blocks on class token and 2 x 2 patches, then six slices
    torch.testing.assert_close(by_xformers, expected, rtol=0, atol=1e-10)
    torch.testing.assert_close(by_math, expected, rtol=0, atol=1e-10)


def test_a_kernel_that_refuses_is_named_before_the_weights_are_read(install: Install) -> None:
    install(cuda_only)
    model = ModelConfig(**{**TINY, "weights": "/none.pth"}, attention="xformers")
    with pytest.raises(ConfigError) as caught:
        build_model(model, StubPlan(), device="cpu", dtype=torch.bfloat16)
    for part in ("model.attention=xformers", "device cpu", "bfloat16", "64 channels per head", "no operator for cpu"):
        assert part in str(caught.value)
    assert "hint: set model.attention=sdpa" in str(caught.value)


def test_training_stops_before_it_starts_where_the_kernel_refuses(install: Install) -> None:
    install(cuda_only)
    config = Config(device="cpu", model=ModelConfig(**TINY, attention="xformers"), train=TrainConfig(max_steps=1))
    with pytest.raises(ConfigError, match=r"set model\.attention=sdpa"):
        TrainingState(config, StubPlan())


@pytest.mark.parametrize(
    ("precision", "dtype"),
    [
        ("32", torch.float32),
        pytest.param(
            "bf16",
            torch.bfloat16,
            marks=pytest.mark.skipif(not has_native_bf16(torch.device("cpu")), reason="bf16 needs a CPU with AMX"),
        ),
    ],
)
def test_training_tries_the_kernel_in_its_own_precision(install: Install, precision: str, dtype: torch.dtype) -> None:
    dtypes = []

    def kernel(*inputs: torch.Tensor) -> torch.Tensor:
        dtypes.append(inputs[0].dtype)
        return heads_third(*inputs)

    install(kernel)
    model = ModelConfig(**TINY, attention="xformers")
    TrainingState(Config(device="cpu", precision=precision, model=model, train=TrainConfig(max_steps=1)), StubPlan())
    assert dtypes == [dtype]


def test_a_kernel_without_a_backward_pass_is_refused(install: Install) -> None:
    install(lambda *inputs: heads_third(*inputs).detach())
    with pytest.raises(ConfigError, match="does not run here"):
        try_attention("xformers", 64, "cpu", torch.float32)


def test_no_kernel_is_tried_for_a_network_without_attention(install: Install) -> None:
    install(cuda_only)
    settings: dict[str, Any] = {**TINY, "encoder": "identity", "attention": "xformers"}
    build_model(ModelConfig(**settings), StubPlan(), device="cpu")


def test_trying_draws_no_random_numbers_and_works_without_gradients() -> None:
    before = torch.get_rng_state()
    with torch.no_grad():
        try_attention("sdpa", 64, "cpu", torch.float32)
        try_attention("math", 64, "cpu", torch.float32)
    assert torch.equal(before, torch.get_rng_state())


def test_a_model_file_opens_where_xformers_does_not_run() -> None:
    assert for_prediction(ModelConfig(**TINY, attention="xformers")).attention == "sdpa"
    assert for_prediction(ModelConfig(**TINY, attention="math")).attention == "math"


def test_a_runtime_is_loaded_from_its_package_where_the_system_has_none(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = tmp_path / "made_vendor" / "made_runtime" / "lib"
    monkeypatch.syspath_prepend(tmp_path)
    assert not load_cuda_runtime("libmade.so.12", "made_vendor.made_runtime")
    folder.mkdir(parents=True)
    assert not load_cuda_runtime("libmade.so.12", "made_vendor.made_runtime")  # the package has other files
    (library,) = (Path(torch.__file__).parent / "lib").glob("libtorch_global_deps.*")
    shutil.copy(library, folder / "libmade.so.12")
    assert load_cuda_runtime("libmade.so.12", "made_vendor.made_runtime")
    if (maps := Path("/proc/self/maps")).exists():
        assert str(folder / "libmade.so.12") in maps.read_text(encoding="utf-8")


def test_why_xformers_cannot_load_its_library_is_part_of_the_error(
    install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(cuda_only)
    state = ModuleType("xformers._cpp_lib")
    state._cpp_library_load_exception = RuntimeError("built for another torch")  # type: ignore[attr-defined]
    state._cpp_library_load_exception.__cause__ = OSError("libcudart.so.12: cannot open")
    monkeypatch.setitem(sys.modules, "xformers._cpp_lib", state)
    with pytest.raises(ConfigError, match=r"its library does not load: libcudart\.so\.12") as caught:
        try_attention("xformers", 64, "cpu", torch.float32)
    assert "set model.attention=sdpa" in str(caught.value)


def test_the_state_of_every_kernel_has_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    states = kernel_states(64, torch.device("cpu"), torch.float32)
    assert list(states) == ["sdpa", "xformers", "math"]
    assert states["sdpa"].startswith("runs (")
    assert states["xformers"] == "does not run: it needs a device with CUDA"
    assert states["math"] == "runs"
    monkeypatch.setattr("volseg.models.attention.find_spec", lambda _: None)
    elsewhere = kernel_states(64, torch.device("cuda"), torch.bfloat16)
    assert "pip install 'volseg[xformers]'" in elsewhere["xformers"]
    if not torch.cuda.is_available():
        assert elsewhere["sdpa"] == "not tried: torch finds no GPU with CUDA here"


def test_the_state_on_mps_is_told_where_torch_does_not_tell_its_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("volseg.models.attention.try_attention", lambda *_: None)  # it runs there
    assert kernel_states(64, torch.device("mps"), torch.float32)["sdpa"] == "runs"


def test_the_reasons_of_xformers_are_one_line(install: Install) -> None:
    text = """No operator found with inputs:
     query       : shape=(1, 8, 2, 4) (torch.bfloat16)
     attn_bias   : <class 'NoneType'>
     p           : 0.0
`one` is not supported because:
    query.shape[-1] % 8 != 0
`other` is not supported because:
    query.shape[-1] % 8 != 0
    operator wasn't built"""

    def kernel(*_: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError(text)

    install(kernel)
    with pytest.raises(ConfigError) as caught:
        try_attention("xformers", 64, "cpu", torch.float32)
    reasons = "No operator found; query.shape[-1] % 8 != 0; operator wasn't built"
    assert str(caught.value.found).endswith(reasons)


def test_the_installed_xformers_equals_sdpa_or_says_where_it_runs() -> None:
    pytest.importorskip("xformers.ops")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu":
        with pytest.raises(ConfigError, match=r"set model\.attention=sdpa"):
            try_attention("xformers", 64, device, torch.float32)
        return
    inputs = [x.detach().to(device, torch.bfloat16) for x in tokens(count=300, size=64)]
    torch.testing.assert_close(attention_function("xformers")(*inputs), sdpa(*inputs), rtol=2e-2, atol=2e-2)
