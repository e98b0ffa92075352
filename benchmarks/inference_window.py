"""The network over a volume: volseg's engine beside MONAI's ``SlidingWindowInferer`` on the same prepared array."""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any

import numpy as np
import torch
from networks import (
    Size,
    WorkCount,
    hippocampus_plan,
    monai_logits,
    plan_for,
    random_network,
    smooth_volume,
    with_neighbours,
)
from numpy.typing import NDArray
from record import minutes, save, say, timed
from torch import Tensor

from volseg.geometry.ops import pad_to_size
from volseg.inference.sliding.stream import predict_logits
from volseg.inference.sliding.windows import window_starts
from volseg.io.datasets import read_dataset
from volseg.io.volumes import read_channels
from volseg.models.contracts import SegmentationNetwork
from volseg.planning.plan import Plan
from volseg.preprocessing.preprocess import preprocess_image

WINDOW, VOLUME, CLASSES, TOKEN_STRIDE = (32, 128, 128), (128, 192, 192), 5, 8
QUICK_WINDOW, QUICK_VOLUME = (8, 32, 32), (16, 48, 48)
BATCHES = (1, 2, 4)
MIRRORS: dict[str, tuple[int, ...]] = {"none": (), "all": (0, 1, 2)}


@dataclass(frozen=True)
class Bench:
    """One network with its plan, mirrored or not, and the batch at which MONAI is fastest with it."""

    model: SegmentationNetwork
    plan: Plan
    axes: tuple[int, ...]
    batch: int

    def ours(self, image: NDArray[np.float32]) -> Tensor:
        """Logits (K, D, H, W) by the engine."""
        return predict_logits(self.model, image, self.plan, tta_axes=self.axes, device="cpu")

    def monai(self, stacked: Tensor) -> Tensor:
        """Logits (K, D, H, W) by MONAI; stacking the neighbours comes before, so it is not in its time."""
        return monai_logits(self.model, stacked, self.plan.patch_size, self.batch, self.axes)

    def stack(self, image: NDArray[np.float32]) -> Tensor:
        """What MONAI's inferer gets for an image (C, D, H, W)."""
        return with_neighbours(image, self.model.halo)


def window(args: argparse.Namespace) -> None:
    """Every encoder and mirroring that is asked for; each writes its own record, so that runs add up."""
    shape = args.volume or (QUICK_VOLUME if args.quick else VOLUME)
    plan = plan_for(QUICK_WINDOW if args.quick else WINDOW, TOKEN_STRIDE, CLASSES)
    for encoder in args.encoders:
        model = random_network(plan, encoder=encoder)
        batch = args.batch or best_batch(model, plan)
        costs = Costs.measure(model, plan, batch)
        for mirror in args.mirror:
            bench = Bench(model, plan, MIRRORS[mirror], batch)
            settings = {"encoder": encoder, "mirror": mirror, "volume": shape, "window": plan.patch_size}
            settings |= {"token_stride": TOKEN_STRIDE, "classes": CLASSES, "overlap": 0.5, "sw_batch_size": batch}
            say(
                f"window, {encoder}, mirroring {mirror}: about {minutes(args.pairs * costs.pair_seconds(bench, shape))}"
            )
            started = time.perf_counter()
            result = compare(bench, [smooth_volume(shape)] * args.pairs, costs)
            name = f"inference_window_{encoder}_{mirror}" + ("_part" if shape not in (VOLUME, QUICK_VOLUME) else "")
            save(args.out, name, settings, result, time.perf_counter() - started)


def hippocampus(args: argparse.Namespace) -> None:
    """Real scans of about one window, with the plan of their data set; another scan in every pair."""
    plan = hippocampus_plan()
    cases = read_dataset(args.data / "Task04_Hippocampus").cases[: args.pairs]
    scans = [preprocess_image(read_channels(case.images), plan)[0].data for case in cases]
    for encoder in args.encoders:
        model = random_network(plan, encoder=encoder)
        batch = args.batch or best_batch(model, plan)
        costs = Costs.measure(model, plan, batch)
        for mirror in args.mirror:
            bench = Bench(model, plan, plan.mirror_axes if mirror == "all" else (), batch)
            settings = {"encoder": encoder, "mirror": mirror, "mirror_axes": bench.axes, "window": plan.patch_size}
            settings |= {"cases": [case.id for case in cases], "overlap": 0.5, "sw_batch_size": batch}
            started = time.perf_counter()
            result = compare(bench, [pad_to_size(scan, plan.patch_size)[0] for scan in scans], costs)
            save(args.out, f"inference_hippocampus_{encoder}_{mirror}", settings, result, time.perf_counter() - started)


@dataclass(frozen=True)
class Costs:
    """Seconds of the network's parts for one window: encoding one slice of it, and decoding all of it."""

    encode_slice_s: float
    decode_window_s: float

    @classmethod
    @torch.inference_mode()
    def measure(cls, model: Any, plan: Plan, batch: int) -> Costs:
        """Medians of three at a batch of windows, after one to warm up."""
        depth = plan.patch_size[0]
        x = torch.from_numpy(smooth_volume((depth + 2 * model.halo, *plan.patch_size[1:])))[None]
        x = x.repeat(batch, plan.num_channels, 1, 1, 1)
        centre = x[:, :, model.halo : model.halo + depth]
        taps = model.encode(x)
        model.decode(taps, centre)
        encode_s, _ = timed(lambda: model.encode(x), repeats=3)
        decode_s, _ = timed(lambda: model.decode(taps, centre), repeats=3)
        return cls(encode_s / depth / batch, decode_s / batch)

    def of(self, slices: float, windows: float) -> float:
        """Seconds of so many slices and windows."""
        return slices * self.encode_slice_s + windows * self.decode_window_s

    def pair_seconds(self, bench: Bench, shape: Size) -> float:
        """What one pair will take."""
        work = expected_work(shape, bench.plan.patch_size, bench.axes)
        return self.of(*work["ours"]) + self.of(*work["monai"])


def expected_work(shape: Size, size: Size, axes: tuple[int, ...]) -> dict[str, tuple[int, int]]:
    """Slices to encode and windows to decode, by counting.

    Args:
        shape: Voxels of the volume.
        size: Voxels of a window.
        axes: Mirror axes. Flips along depth use the same tokens, so only those in plane are encoded again.
    """
    padded = [max(n, w) for n, w in zip(shape, size, strict=True)]
    starts = [len(window_starts(n, w)) for n, w in zip(padded, size, strict=True)]
    plane_flips, flips = 2 ** len([axis for axis in axes if axis != 0]), 2 ** len(axes)
    windows = prod(starts) * flips
    return {"ours": (padded[0] * prod(starts[1:]) * plane_flips, windows), "monai": (windows * size[0], windows)}


def best_batch(model: SegmentationNetwork, plan: Plan) -> int:
    """The ``sw_batch_size`` at which MONAI takes least on four windows: medians of three, after one to warm up."""
    depth, height, width = plan.patch_size
    image = np.repeat(smooth_volume((depth + 3 * (depth // 2), height, width)), plan.num_channels, axis=0)
    seconds = {}
    for batch in BATCHES:
        bench = Bench(model, plan, (), batch)
        stacked = bench.stack(image)
        bench.monai(stacked)
        seconds[batch], _ = timed(partial(bench.monai, stacked), repeats=3)
    say("sw_batch_size: " + ", ".join(f"{batch} {value:.2f} s" for batch, value in seconds.items()))
    return min(seconds, key=seconds.__getitem__)


def compare(bench: Bench, images: list[NDArray[np.float32]], costs: Costs) -> dict[str, Any]:
    """Both ways on every image, in turns; the difference of their outputs, and what counting allows."""
    rows, differences = [], []
    work: dict[str, tuple[float, float]] = {}
    for number, image in enumerate(images):
        ways = {"ours": partial(bench.ours, image), "monai": partial(bench.monai, bench.stack(image))}
        seconds, logits = {}, {}
        for name in ways if number % 2 == 0 else reversed(ways):
            with WorkCount(bench.model, bench.plan.patch_size) as count:
                seconds[name], logits[name] = timed(ways[name])
            work[name] = (count.slices, count.windows)
        differences.append(difference(logits["ours"], logits["monai"]))
        rows.append({**{f"{name}_s": round(value, 4) for name, value in seconds.items()}, **differences[-1]})
        say(f"  pair {number + 1}: {seconds['ours']:.2f} s, MONAI {seconds['monai']:.2f} s, {differences[-1]}")
    return {
        "pairs": rows,
        "ours_s": statistics.median(row["ours_s"] for row in rows),
        "monai_s": statistics.median(row["monai_s"] for row in rows),
        "ratio": statistics.median(row["monai_s"] / row["ours_s"] for row in rows),
        "ceiling": costs.of(*work["monai"]) / costs.of(*work["ours"]),
        "encoder_ratio": work["monai"][0] / work["ours"][0],
        "work": {name: {"slices_encoded": n, "windows_decoded": m} for name, (n, m) in work.items()},
        "encode_slice_s": costs.encode_slice_s,
        "decode_window_s": costs.decode_window_s,
        "max_difference": max(row["max_difference"] for row in differences),
        "equal_voxels": min(row["equal_voxels"] for row in differences),
    }


def difference(ours: Tensor, monai: Tensor) -> dict[str, float]:
    """Largest absolute difference of the logits (K, D, H, W), and the share of voxels with the same class.

    A slice at a time: two volumes of logits are enough to hold.
    """
    largest, equal = 0.0, 0
    for a, b in zip(ours.unbind(1), monai.unbind(1), strict=True):
        largest = max(largest, float((a - b).abs().max()))
        equal += int((a.argmax(0) == b.argmax(0)).sum())
    return {"max_difference": largest, "equal_voxels": equal / ours[0].numel()}
