"""Attention kernels on a GPU against the reference in float64."""

from __future__ import annotations

import pytest
import torch

from volseg.models.attention import attention_function, kernel_states, reference_attention

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU with CUDA")]

HEAD_SIZE = 64
ERROR = {torch.float32: 2e-3, torch.bfloat16: 2**-6}
"""Largest difference to the reference, as a share of its largest value. float32 leaves room for TF32 in xFormers."""


def random_inputs(count: int) -> list[torch.Tensor]:
    """Return queries, keys and values (2, 3, count, 64) in float64 on the CPU."""
    generator = torch.Generator().manual_seed(count)
    return list(torch.randn(3, 2, 3, count, HEAD_SIZE, generator=generator, dtype=torch.float64).unbind())


@pytest.mark.parametrize("dtype", list(ERROR), ids=["float32", "bf16"])
@pytest.mark.parametrize("name", ["sdpa", "math", "xformers"])
@pytest.mark.parametrize("count", [5, 257, 1370])
def test_values_and_gradients_equal_those_of_the_reference(name: str, count: int, dtype: torch.dtype) -> None:
    if name == "xformers":
        pytest.importorskip("xformers", reason="needs the extra volseg[xformers]")
    exact = [x.requires_grad_() for x in random_inputs(count)]
    inputs = [x.to("cuda", dtype).requires_grad_() for x in random_inputs(count)]
    expected, mixed = reference_attention(*exact), attention_function(name)(*inputs)
    weights = torch.randn(expected.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    gradients = torch.autograd.grad(mixed, inputs, weights.to("cuda", dtype))
    pairs = zip([mixed, *gradients], [expected, *torch.autograd.grad(expected, exact, weights)], strict=True)
    for ours, reference in pairs:
        difference = (ours.detach().cpu().double() - reference).abs().max()
        assert difference <= ERROR[dtype] * reference.abs().max()


def test_all_kernels_run_and_sdpa_is_not_the_plain_one() -> None:
    states = kernel_states(HEAD_SIZE, torch.device("cuda"), torch.bfloat16)
    assert states["math"] == "runs"
    assert states["sdpa"].startswith("runs (")
    assert "math" not in states["sdpa"]
    if "not installed" not in states["xformers"]:
        assert states["xformers"] == "runs"
