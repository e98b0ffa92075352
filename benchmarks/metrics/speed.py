"""Speed and values of the metrics beside other tools, on made masks."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import ndimage

from metrics import organ_shapes
from metrics.libraries import PEERS, SAME_DEFINITION, Scores, score_peer, score_volseg
from metrics.organ_shapes import Pair
from shared.measure import timed
from shared.text import say

Row = dict[str, Any]
FULL: dict[str, Any] = {"shape": (132, 512, 512), "classes": 13, "smallest": 1_600, "largest": 1_000_000}
QUICK: dict[str, Any] = {"shape": (40, 96, 96), "classes": 3, "smallest": 300, "largest": 8_000}


def pairs(count: int, tools: Sequence[str], quick: bool) -> list[Row]:
    """Return the seconds of every tool on organ-like pairs, and the largest differences of the values."""
    sizes = QUICK if quick else FULL
    peers = [tool for tool in tools if tool in PEERS]
    warm_up = organ_shapes.pair(0, **QUICK)
    score_volseg(warm_up, 3)
    for tool in peers:
        score_peer(tool, warm_up, 3)
    rows = []
    for seed in range(count):
        pair = organ_shapes.pair(seed, **sizes)
        row: Row = {"seed": seed, "voxels": np.bincount(pair.reference.ravel())[1:].tolist(), "seconds": {}}
        row["seconds"]["volseg"], _ = timed(lambda p=pair: score_volseg(p, sizes["classes"]), repeats=3)
        row["max_difference"] = {}
        for tool in peers:
            row["seconds"][tool], theirs = timed(lambda p=pair, t=tool: score_peer(t, p, sizes["classes"]))
            row["max_difference"][tool] = differences(pair, sizes["classes"], tool, theirs)
        rows.append(row)
        say(json.dumps(row))
    return rows


def differences(pair: Pair, classes: int, tool: str, theirs: dict[int, Scores]) -> Scores:
    """Return the largest absolute difference of each score, under the other tool's definition of HD95."""
    ours = score_volseg(pair, classes, SAME_DEFINITION[tool])
    return {name: max(abs(ours[k][name] - theirs[k][name]) for k in theirs) for name in theirs[1]}


def hard_predictions() -> list[Row]:
    """Return seconds on predictions that are slow for search trees, beside two distance transforms."""
    rows = []
    for name, pair in (("displaced by 100 mm", organ_shapes.displaced(0)), ("hollow", organ_shapes.hollow())):
        ours_s, ours = timed(lambda p=pair: score_volseg(p, 1), repeats=3)
        transform_s, hd95 = timed(lambda p=pair: distance_transform_hd95(p))
        monai_s, theirs = timed(lambda p=pair: score_peer("monai", p, 1))
        seconds = {"volseg": ours_s, "distance transforms": transform_s, "monai": monai_s}
        row = {"name": name, "seconds": seconds, "max_difference": abs(ours[1]["hd95"] - hd95)}
        rows.append({**row, "monai_hd95": theirs[1]["hd95"]})
    return rows


def distance_transform_hd95(pair: Pair) -> float:
    """Return HD95 by scipy's distance transforms of the box that holds both masks: the textbook way."""
    box = ndimage.find_objects((pair.reference | pair.prediction).astype(np.uint8))[0]
    borders = []
    for labels in (pair.reference, pair.prediction):
        mask = np.pad(labels[box] > 0, 1)
        borders.append(mask & ~ndimage.binary_erosion(mask))
    distances = [ndimage.distance_transform_edt(~border, sampling=pair.spacing_mm) for border in borders]
    return float(max(np.percentile(distances[0][borders[1]], 95), np.percentile(distances[1][borders[0]], 95)))


def scaling(quick: bool) -> dict[str, list[Row]]:
    """Return seconds against the size of the volume (same organs) and the number of classes (same volume)."""
    small = (40, 96, 96) if quick else (60, 160, 160)
    organs = organ_shapes.pair(0, small, 5, 1_000, 8_000 if quick else 40_000)
    volumes = []
    for factor in (1, 2) if quick else (1, 2, 4, 8, 16):
        shape = (small[0], round(small[1] * factor**0.5), round(small[2] * factor**0.5))
        volumes.append(seconds_of(padded(organs, shape), 5))
    counts = (1, 3, 10) if quick else (1, 3, 10, 30, 100)
    shape = (40, 128, 128) if quick else (132, 384, 384)
    classes = [seconds_of(organ_shapes.pair(1, shape, n, 500, 500 + 30_000 // n), n) for n in counts]
    return {"volume": volumes, "classes": classes}


def padded(pair: Pair, shape: tuple[int, ...]) -> Pair:
    """Return the same organs in the middle of a larger volume."""
    before = [(n - m) // 2 for n, m in zip(shape, pair.reference.shape, strict=True)]
    widths = [(b, n - m - b) for b, n, m in zip(before, shape, pair.reference.shape, strict=True)]
    return Pair(np.pad(pair.reference, widths), np.pad(pair.prediction, widths), pair.spacing_mm)


def seconds_of(pair: Pair, classes: int) -> Row:
    """Return the seconds of volseg and MONAI on a pair."""
    ours, _ = timed(lambda: score_volseg(pair, classes), repeats=3)
    monai, _ = timed(lambda: score_peer("monai", pair, classes))
    return {"voxels": pair.reference.size, "classes": classes, "volseg": ours, "monai": monai}
