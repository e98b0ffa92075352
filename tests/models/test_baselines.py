"""DynUNet by nnU-Net's rules: topologies that nnU-Net itself plans."""

from __future__ import annotations

import pytest
import torch

from tests.made.plans import StubPlan
from volseg.config.schema import ModelConfig
from volseg.errors import ConfigError
from volseg.models.baselines import Unetr, build_baseline, build_dynunet, unet_topology
from volseg.models.build import build_empty

ISO = (3, 3, 3)


@pytest.mark.parametrize(
    ("spacing", "patch", "strides", "kernels"),
    [
        # nnU-Net's plan of Task04_Hippocampus, 3d_fullres.
        ((1.0, 1.0, 1.0), (40, 56, 40), [(1, 1, 1)] + [(2, 2, 2)] * 3, [ISO] * 4),
        # nnU-Net's plan of Task05_Prostate, 3d_fullres.
        (
            (3.6, 0.62, 0.62),
            (16, 320, 320),
            [(1, 1, 1), (1, 2, 2), (1, 2, 2), (2, 2, 2), (2, 2, 2), (1, 2, 2), (1, 2, 2)],
            [(1, 3, 3), (1, 3, 3), ISO, ISO, ISO, ISO, ISO],
        ),
        # nothing to halve
        ((1.0, 1.0, 1.0), (4, 4, 4), [(1, 1, 1)], [ISO]),
    ],
)
def test_topology_is_what_nnunet_plans(
    spacing: tuple[float, ...], patch: tuple[int, ...], strides: list[tuple[int, ...]], kernels: list[tuple[int, ...]]
) -> None:
    assert unet_topology(spacing, patch) == (strides, kernels)


def test_widths_double_up_to_320() -> None:
    plan = StubPlan(patch_size=(64, 64, 64))
    network = build_dynunet(plan).network
    assert network.filters == [32, 64, 128, 256, 320]
    assert len(network.deep_supervision_heads) == 3


@pytest.mark.parametrize("name", ["unetr", "swinunetr"])
def test_transformer_baselines_take_any_size(name: str) -> None:
    torch.manual_seed(0)
    model = build_baseline(name, StubPlan(patch_size=(12, 24, 32))).eval()
    assert model.multiple == ((16, 32, 32) if name == "unetr" else (32, 32, 64))
    with torch.no_grad():
        small, large = torch.randn(1, 1, 12, 20, 30), torch.randn(1, 1, 20, 40, 30)
        assert model.decode([], small).shape == (1, 3, 12, 20, 30)
        assert model.decode([], large).shape == (1, 3, 20, 40, 30)


def test_the_blocks_of_a_large_input_are_put_where_they_were_cut() -> None:
    model = Unetr(torch.nn.Identity(), (2, 3, 4), 0)
    x = torch.randn(2, 1, 4, 6, 8)
    assert torch.equal(model.levels(x)[0], x)


def test_swinunetr_is_counted_without_values() -> None:
    network = build_empty(ModelConfig(encoder="identity", baseline="swinunetr"), StubPlan())
    assert {parameter.device.type for parameter in network.parameters()} == {"meta"}


def test_dynunet_needs_three_stages() -> None:
    with pytest.raises(ConfigError, match="the patch is too small"):
        build_baseline("dynunet", StubPlan(patch_size=(8, 8, 8)))
