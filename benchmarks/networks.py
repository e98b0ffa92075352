"""Networks with random weights, the plans they belong to, and MONAI's inferer made to give the same logits."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from record import HERE
from torch import Tensor, nn

from volseg.config.schema import ModelConfig
from volseg.models.build import build_model
from volseg.models.contracts import SegmentationNetwork
from volseg.models.segmenter import Segmenter
from volseg.planning.plan import ChannelIntensity, Plan
from volseg.planning.rules import decoder_strides

SEED = 0
Size = tuple[int, int, int]


def plan_for(window: Size, token_stride: int, classes: int, spacing_mm: float = 1.0, clip_hu: float = 1000.0) -> Plan:
    """A plan for CT of cubic voxels with this window; everything else as the rules have it."""
    strides = decoder_strides((spacing_mm,) * 3, window[0], token_stride, exact=True)
    return Plan(
        dataset="benchmark",
        modality="ct",
        channels=("CT",),
        labels={"background": 0} | {f"organ {number}": number for number in range(1, classes)},
        slice_axis="S",
        spacing_mm=(spacing_mm,) * 3,
        intensity=(ChannelIntensity(rule="ct", clip_low=-clip_hu, clip_high=clip_hu, mean=0.0, std=clip_hu / 2),),
        crop_nonzero=False,
        patch_size=window,
        token_stride=token_stride,
        decoder_strides=strides,
        mirror_axes=(0, 1, 2),
        nearest_depth=False,
        rotate_in_plane_only=False,
    )


def hippocampus_plan() -> Plan:
    """The plan of the Decathlon's hippocampus, as a run in ``results/`` made it."""
    return Plan.load(HERE / "results" / "hippocampus" / "run_60min" / "plan.json")


def random_network(plan: Plan, **settings: Any) -> SegmentationNetwork:
    """A seeded network in eval mode; what starts as zero (the aggregator's output) is filled, so that it works."""
    torch.manual_seed(SEED)
    model = build_model(ModelConfig(**{"weights": "random", **settings}), plan)
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():
                parameter.normal_(std=0.02)
    return model.eval()


def smooth_volume(shape: Size) -> NDArray[np.float32]:
    """(1, D, H, W): seeded structures of several voxels with some noise, of mean 0 and deviation 1."""
    noise = torch.randn((1, 1, *shape), generator=torch.Generator().manual_seed(SEED))
    coarse = torch.randn((1, 1, *(max(2, n // 12) for n in shape)), generator=torch.Generator().manual_seed(SEED + 1))
    volume = nn.functional.interpolate(coarse, size=shape, mode="trilinear") + 0.2 * noise
    return ((volume - volume.mean()) / volume.std())[0].numpy()


def with_neighbours(image: NDArray[np.float32], halo: int) -> Tensor:
    """(C, D, H, W) -> (1, (2 halo + 1) * C, D, H, W): neighbouring slices as channels, the end slices repeated.

    MONAI cuts windows without neighbours; with them as channels every window carries its own.
    """
    if not halo:
        return torch.from_numpy(image)[None]
    padded = torch.from_numpy(np.pad(image, ((0, 0), (halo, halo), (0, 0), (0, 0)), mode="edge"))[None]
    depth = image.shape[1]
    return torch.cat([padded[:, :, shift : shift + depth] for shift in range(2 * halo + 1)], dim=1)


def whole_network(model: SegmentationNetwork, axes: Sequence[int] = ()) -> Callable[[Tensor], Tensor]:
    """The network as MONAI's inferer calls it: windows with neighbours as channels, averaged over all flips of them."""
    halo = model.halo
    flips = [flip for n in range(len(axes) + 1) for flip in itertools.combinations([axis + 2 for axis in axes], n)]

    def predict(windows: Tensor) -> Tensor:
        shifts = windows.chunk(2 * halo + 1, dim=1)  # each (B, C, D, H, W)
        before = [shift[:, :, :1] for shift in shifts[:halo]]
        after = [shift[:, :, -1:] for shift in shifts[halo + 1 :]]
        x = torch.cat([*before, shifts[halo], *after], dim=2)  # (B, C, D + 2 halo, H, W)
        total = model(x.flip(flips[0])).flip(flips[0])
        for flip in flips[1:]:
            total += model(x.flip(flip)).flip(flip)
        return total / len(flips)

    return predict


@torch.inference_mode()
def monai_logits(
    model: SegmentationNetwork, stacked: Tensor, window: Size, batch: int, axes: Sequence[int] = ()
) -> Tensor:
    """(K, D, H, W) by MONAI's ``SlidingWindowInferer``: every window through the whole network."""
    from monai.inferers import SlidingWindowInferer

    inferer = SlidingWindowInferer(window, sw_batch_size=batch, overlap=0.5, mode="gaussian")
    return inferer(stacked, whole_network(model, axes))[0]  # type: ignore[no-any-return, index]


class WorkCount:
    """Counts what passes through a network's encoder and decoder, in windows' worth, while it is open."""

    def __init__(self, model: Segmenter, window: Size) -> None:
        self.slices = 0.0
        self.windows = 0.0
        self._model, self._window = model, window
        self._handles: list[Any] = []

    def __enter__(self) -> WorkCount:
        if self._model.encoder is not None:
            self._handles.append(self._model.encoder.register_forward_hook(self._encoded))
        self._handles.append(self._model.decoder.register_forward_hook(self._decoded))
        return self

    def __exit__(self, *exception: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _encoded(self, module: nn.Module, inputs: tuple[Tensor], taps: list[Tensor]) -> None:
        """Slices of the output (B, E, D, h, w), as shares of a window's plane."""
        plane = inputs[0].shape[-2] * inputs[0].shape[-1]
        self.slices += len(taps[0]) * taps[0].shape[2] * plane / (self._window[1] * self._window[2])

    def _decoded(self, module: nn.Module, inputs: tuple[Tensor, Any], logits: Any) -> None:
        image = inputs[0]  # (B, C, D, H, W)
        self.windows += len(image) * image[0, 0].numel() / float(np.prod(self._window))
