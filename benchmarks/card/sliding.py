"""The network over a volume: volseg's sliding window beside MONAI's on the same network and array."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from card.device import PRECISIONS, kernel_seconds, precisions, seconds_of, share
from prediction.monai_inferer import monai_logits, with_neighbours
from prediction.networks import Size, plan_for, random_network, smooth_volume
from prediction.windows import difference
from shared.measure import timed
from shared.record import Record
from shared.text import say
from volseg.device import full_float32
from volseg.inference.sliding.columns import Flips
from volseg.inference.sliding.memory import Limits, Schedule, choose_schedule, free_bytes
from volseg.inference.sliding.stream import predict_logits
from volseg.inference.sliding.windows import Layout
from volseg.models.contracts import SegmentationNetwork
from volseg.planning.plan import Plan

CLASSES, TOKEN_STRIDE = 5, 8
BATCHES = (1, 2, 4, 8)
LONG_S = 2.0
"""Seconds of both ways from which one call of each is enough."""
SIZES: dict[str, tuple[Sequence[str], Size, Size, int]] = {
    "full": (("dinov2_s14", "dinov2_b14"), (128, 192, 192), (32, 128, 128), 3),
    "quick": (("dinov2_s14",), (64, 192, 192), (32, 128, 128), 1),
    "tiny": (("tiny",), (12, 32, 48), (8, 32, 32), 1),
}
"""Encoders, volume, window, repeats."""


def rows(device: str, size: str) -> Iterator[Record]:
    """Yield a row for each precision, encoder and mirroring; MONAI has the fastest ``sw_batch_size`` of 1, 2, 4, 8."""
    encoders, shape, window, repeats = SIZES[size]
    plan, image = plan_for(window, TOKEN_STRIDE, CLASSES), smooth_volume(shape)
    networks = {encoder: random_network(plan, encoder=encoder).to(device) for encoder in encoders}
    for precision in precisions(device):
        for encoder, model in networks.items():
            pair = Pair(model, plan, image, device, precision)
            batch = pair.best_batch()
            for axes in ((), plan.mirror_axes):
                settings = {"encoder": encoder, "precision": precision, "flips": 2 ** len(axes)}
                yield {**settings, "sw_batch_size": batch, **pair.compare(batch, axes, repeats)}


class Pair:
    """Both ways to predict a volume with one network in one precision; the logits (K, D, H, W) end on the CPU."""

    def __init__(
        self, model: SegmentationNetwork, plan: Plan, image: NDArray[np.float32], device: str, precision: str
    ) -> None:
        self._model, self._plan, self._image, self._device = model, plan, image, torch.device(device)
        self._autocast = None if precision == "float32" else PRECISIONS[precision]
        self._stacked = with_neighbours(image, model.halo)

    def ours(self, axes: Sequence[int] = ()) -> Tensor:
        """Return the logits by volseg, with the schedule that its command would choose."""
        schedule = schedule_for(self._model, self._plan, self._image, axes, self._device)
        return predict_logits(
            self._model, self._image, self._plan,
            tta_axes=axes, device=self._device, autocast=self._autocast, schedule=schedule,
        )  # fmt: skip

    def monai(self, batch: int, axes: Sequence[int] = ()) -> Tensor:
        """Return the logits by MONAI; stacking the neighbours is not in its time."""
        with full_float32(), torch.autocast(self._device.type, self._autocast, enabled=self._autocast is not None):
            stacked = self._stacked.to(self._device)
            return monai_logits(self._model, stacked, self._plan.patch_size, batch, axes).float().cpu()

    def best_batch(self) -> int:
        """Return the fastest ``sw_batch_size`` without mirroring, of one call each after one to warm up."""
        seconds = {}
        for batch in BATCHES:
            try:
                self.monai(batch)
                seconds[batch] = seconds_of({"monai": partial(self.monai, batch)}, str(self._device), 1)["monai"]
            except torch.OutOfMemoryError:
                break
        say("sw_batch_size: " + ", ".join(f"{batch} {value:.3f} s" for batch, value in seconds.items()))
        return min(seconds, key=seconds.__getitem__)

    def compare(self, batch: int, axes: Sequence[int], repeats: int) -> Record:
        """Return seconds, their ratio, the share of them in kernels, and the agreement of the logits."""
        calls = {"volseg": partial(self.ours, axes), "monai": partial(self.monai, batch, axes)}
        first_s, logits = timed(lambda: [call() for call in calls.values()])  # warms up, too
        agreement, device = difference(*logits), str(self._device)
        seconds = seconds_of(calls, device, repeats if first_s < LONG_S else 1)
        busy = {name: share(kernel_seconds(call, device), seconds[name]) for name, call in calls.items()}
        return {
            **{f"{name}_s": round(value, 4) for name, value in seconds.items()},
            "ratio": round(seconds["monai"] / seconds["volseg"], 2),
            **{f"{name}_busy": value for name, value in busy.items()},
            **agreement,
        }


def schedule_for(
    model: SegmentationNetwork, plan: Plan, image: NDArray[np.float32], axes: Sequence[int], device: torch.device
) -> Schedule:
    """Return the schedule of a prediction, as the predictor chooses it."""
    channels, depth, height, width = image.shape
    layout, flips = Layout.of((depth, height, width), plan.patch_size), Flips.along(axes)
    return choose_schedule([model], plan, layout, flips, channels * height * width, Limits(None, free_bytes(device)))
