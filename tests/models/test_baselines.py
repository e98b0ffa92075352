"""DynUNet by nnU-Net's rules: topologies that nnU-Net itself plans."""

from __future__ import annotations

import pytest

from tests.made.plans import StubPlan
from volseg.models.baselines import build_dynunet, unet_topology

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
