"""The network over a volume: volseg's sliding window beside MONAI's on the same preprocessed array."""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from prediction.monai_inferer import OVERLAP, monai_logits, with_neighbours
from prediction.networks import Size, hippocampus_plan, plan_for, random_network, smooth_volume
from prediction.work import PartCosts, WorkCount, expected_work
from shared.measure import timed
from shared.record import save
from shared.text import minutes_text, say
from volseg.geometry.ops import pad_to_size
from volseg.inference.sliding.stream import predict_logits
from volseg.io.datasets import read_dataset
from volseg.io.volumes import read_channels
from volseg.models.contracts import SegmentationNetwork
from volseg.planning.plan import Plan
from volseg.preprocessing.preprocess import preprocess_image

WINDOW, VOLUME, CLASSES, TOKEN_STRIDE = (32, 128, 128), (128, 192, 192), 5, 8
QUICK_WINDOW, QUICK_VOLUME = (8, 32, 32), (16, 48, 48)
BATCHES = (1, 2, 4)


@dataclass(frozen=True)
class Setup:
    """One network with its plan, mirrored or not, and the batch at which MONAI is fastest with it."""

    model: SegmentationNetwork
    plan: Plan
    axes: tuple[int, ...]
    batch: int

    def ours(self, image: NDArray[np.float32]) -> Tensor:
        """Return the logits ``(K, D, H, W)`` by volseg's sliding window."""
        return predict_logits(self.model, image, self.plan, tta_axes=self.axes, device="cpu")

    def monai(self, stacked: Tensor) -> Tensor:
        """Return the logits ``(K, D, H, W)`` by MONAI; stacking the neighbours is not in its time."""
        return monai_logits(self.model, stacked, self.plan.patch_size, self.batch, self.axes)

    def stack(self, image: NDArray[np.float32]) -> Tensor:
        """Return an image ``(C, D, H, W)`` as the input of MONAI's inferer."""
        return with_neighbours(image, self.model.halo)


def window(args: argparse.Namespace) -> None:
    """Measure a volume of several windows with every encoder and mirroring; each writes its own record."""
    shape = args.volume or (QUICK_VOLUME if args.quick else VOLUME)
    plan = plan_for(QUICK_WINDOW if args.quick else WINDOW, TOKEN_STRIDE, CLASSES)
    settings = {"volume": shape, "token_stride": TOKEN_STRIDE, "classes": CLASSES}
    part = "" if shape in (VOLUME, QUICK_VOLUME) else "_part"
    measure(args, f"window_{{encoder}}_{{mirror}}{part}", plan, [smooth_volume(shape)] * args.pairs, settings)


def hippocampus(args: argparse.Namespace) -> None:
    """Measure real scans of about one window, with the plan of their data set; another scan in every pair."""
    plan = hippocampus_plan()
    cases = read_dataset(args.data / "Task04_Hippocampus").cases[: args.pairs]
    scans = [preprocess_image(read_channels(case.images), plan)[0].data for case in cases]
    images = [pad_to_size(scan, plan.patch_size)[0] for scan in scans]
    measure(args, "hippocampus_{encoder}_{mirror}", plan, images, {"cases": [case.id for case in cases]})


def measure(
    args: argparse.Namespace, name: str, plan: Plan, images: list[NDArray[np.float32]], settings: dict[str, Any]
) -> None:
    """Compare both ways with every encoder and mirroring; write a record of each.

    Args:
        args: Command line.
        name: Name of the record, with ``{encoder}`` and ``{mirror}``.
        plan: Plan of the network; its mirror axes are those of ``--mirror all``.
        images: ``(C, D, H, W)``, one for each pair.
        settings: Settings for the record.
    """
    shape: Size = images[0].shape[1:]
    for encoder in args.encoders:
        model = random_network(plan, encoder=encoder)
        batch = args.batch or best_batch(model, plan)
        costs = PartCosts.measure(model, plan, batch)
        for mirror in args.mirror:
            setup = Setup(model, plan, plan.mirror_axes if mirror == "all" else (), batch)
            work = expected_work(shape, plan.patch_size, setup.axes).values()
            expected_s = len(images) * sum(costs.seconds(*amounts) for amounts in work)
            say(f"{encoder}, mirroring {mirror}: about {minutes_text(expected_s)}")
            started = time.perf_counter()
            result = compare(setup, images, costs)
            record = {"encoder": encoder, "mirror": mirror, "mirror_axes": setup.axes, "window": plan.patch_size}
            record |= {**settings, "overlap": OVERLAP, "sw_batch_size": batch}
            save(args.out, name.format(encoder=encoder, mirror=mirror), record, result, time.perf_counter() - started)


def best_batch(model: SegmentationNetwork, plan: Plan) -> int:
    """Return the fastest ``sw_batch_size`` of MONAI on four windows: medians of three calls, after one to warm up."""
    depth, height, width = plan.patch_size
    image = np.repeat(smooth_volume((depth + 3 * (depth // 2), height, width)), plan.num_channels, axis=0)
    seconds = {}
    for batch in BATCHES:
        setup = Setup(model, plan, (), batch)
        stacked = setup.stack(image)
        setup.monai(stacked)
        seconds[batch], _ = timed(partial(setup.monai, stacked), repeats=3)
    say("sw_batch_size: " + ", ".join(f"{batch} {value:.2f} s" for batch, value in seconds.items()))
    return min(seconds, key=seconds.__getitem__)


def compare(setup: Setup, images: list[NDArray[np.float32]], costs: PartCosts) -> dict[str, Any]:
    """Run both ways on every image, in changing order; return times, differences, and the limit by counted work."""
    rows, differences = [], []
    work: dict[str, tuple[float, float]] = {}
    for number, image in enumerate(images):
        ways = {"ours": partial(setup.ours, image), "monai": partial(setup.monai, setup.stack(image))}
        seconds, logits = {}, {}
        for name in ways if number % 2 == 0 else reversed(ways):
            with WorkCount(setup.model, setup.plan.patch_size) as count:
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
        "ceiling": costs.seconds(*work["monai"]) / costs.seconds(*work["ours"]),
        "encoder_ratio": work["monai"][0] / work["ours"][0],
        "work": {name: {"slices_encoded": n, "windows_decoded": m} for name, (n, m) in work.items()},
        "encode_slice_s": costs.encode_slice_s,
        "decode_window_s": costs.decode_window_s,
        "max_difference": max(row["max_difference"] for row in differences),
        "equal_voxels": min(row["equal_voxels"] for row in differences),
    }


def difference(ours: Tensor, monai: Tensor) -> dict[str, float]:
    """Return the largest absolute difference of the logits ``(K, D, H, W)``, and the share of equal mask voxels.

    It goes slice by slice, because two volumes of logits fill the memory.
    """
    largest, equal = 0.0, 0
    for a, b in zip(ours.unbind(1), monai.unbind(1), strict=True):
        largest = max(largest, float((a - b).abs().max()))
        equal += int((a.argmax(0) == b.argmax(0)).sum())
    return {"max_difference": largest, "equal_voxels": equal / ours[0].numel()}
