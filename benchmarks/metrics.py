"""Speed and values of the metrics beside MONAI, MedPy and surface-distance, and what they do with empty masks.

    python benchmarks/metrics.py                      # everything: about an hour, nearly all of it MedPy
    python benchmarks/metrics.py --parts empty,large  # some parts; the others stay as they were
    python benchmarks/metrics.py --quick              # small volumes, to see that it works

Everyone works in this process with one thread, on the same seeded masks (``organ_shapes.py``). Ratios are within one
pair. Results: ``benchmarks/results/metrics_*.json``, ``metrics.md`` and ``metrics_scaling.png``.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import organ_shapes
from metric_tables import markdown, plot
from metric_tools import SAME_DEFINITION, SCORERS, TOOLS, Scores, prepare_libraries, score_monai, score_volseg
from record import origin, timed
from scipy import ndimage

from volseg.metrics.scores import case_scores

PARTS = ("pairs", "traps", "large", "scaling", "empty")
FULL = {"shape": (132, 512, 512), "classes": 13, "smallest": 1_600, "largest": 1_000_000}
QUICK = {"shape": (40, 96, 96), "classes": 3, "smallest": 300, "largest": 8_000}


def main() -> int:
    """Run the parts and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", type=lambda text: text.split(","), default=list(PARTS), help=", ".join(PARTS))
    parser.add_argument("--pairs", type=int, default=5, help="pairs of masks, seeds 0 ... (%(default)s)")
    parser.add_argument("--tools", type=lambda text: text.split(","), default=list(TOOLS), help="which to measure")
    parser.add_argument("--quick", action="store_true", help="small volumes")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results", help="folder of the results")
    parser.add_argument("--large-child", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.large_child:
        print(json.dumps(score_large(args.quick)))
        return 0
    prepare_libraries()
    args.out.mkdir(parents=True, exist_ok=True)
    for part in args.parts:
        started = time.perf_counter()
        result = {"pairs": pairs, "traps": traps, "large": large, "scaling": scaling, "empty": empty}[part](args)
        record = {"part": part, **origin(), "seconds": round(time.perf_counter() - started, 1), "result": result}
        (args.out / f"metrics_{part}.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        print(f"{part}: {record['seconds']} s", file=sys.stderr)
    (args.out / "metrics.md").write_text(markdown(args.out), encoding="utf-8")
    print((args.out / "metrics.md").read_text(encoding="utf-8"))
    return 0


def differences(pair: organ_shapes.Pair, classes: int, tool: str, theirs: dict[int, Scores]) -> Scores:
    """Largest absolute difference of each score, under the definition of the other tool."""
    ours = score_volseg(pair, classes, SAME_DEFINITION[tool])
    names = theirs[1].keys()
    return {name: max(abs(ours[k][name] - theirs[k][name]) for k in theirs) for name in names}


def pairs(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Seconds of every tool on organ-like pairs, and the largest differences of the values."""
    size = QUICK if args.quick else FULL
    for score in (score_volseg, *SCORERS.values()):
        score(organ_shapes.pair(0, **QUICK), 3)  # warm up
    rows = []
    for seed in range(args.pairs):
        pair = organ_shapes.pair(seed, **size)
        row: dict[str, Any] = {"seed": seed, "voxels": np.bincount(pair.reference.ravel())[1:].tolist(), "seconds": {}}
        row["seconds"]["volseg"], _ = timed(lambda p=pair: score_volseg(p, size["classes"]), repeats=3)
        row["max_difference"] = {}
        for tool in args.tools:
            if tool in SCORERS:
                row["seconds"][tool], theirs = timed(lambda p=pair, t=tool: SCORERS[t](p, size["classes"]))
                row["max_difference"][tool] = differences(pair, size["classes"], tool, theirs)
        rows.append(row)
        print(json.dumps(row), file=sys.stderr)
    return rows


def traps(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Predictions that are slow for trees, beside two distance transforms of the common box."""
    rows = []
    for name, pair in (("displaced by 100 mm", organ_shapes.displaced(0)), ("hollow", organ_shapes.hollow())):
        ours_s, _ = timed(lambda p=pair: score_volseg(p, 1), repeats=3)
        transform_s, hd95 = timed(lambda p=pair: transform_hd95(p))
        monai_s, theirs = timed(lambda p=pair: score_monai(p, 1))
        difference = abs(score_volseg(pair, 1)[1]["hd95"] - hd95)
        seconds = {"volseg": ours_s, "distance transforms": transform_s, "monai": monai_s}
        rows.append({"name": name, "seconds": seconds, "max_difference": difference, "monai_hd95": theirs[1]["hd95"]})
    return rows


def transform_hd95(pair: organ_shapes.Pair) -> float:
    """HD95 by scipy's distance transforms of the box that holds both masks: the textbook way."""
    box = ndimage.find_objects((pair.reference | pair.prediction).astype(np.uint8))[0]
    borders = []
    for labels in (pair.reference, pair.prediction):
        mask = np.pad(labels[box] > 0, 1)
        borders.append(mask & ~ndimage.binary_erosion(mask))
    to = [ndimage.distance_transform_edt(~border, sampling=pair.spacing_mm) for border in borders]
    return float(max(np.percentile(to[0][borders[1]], 95), np.percentile(to[1][borders[0]], 95)))


def large(args: argparse.Namespace) -> dict[str, Any]:
    """A whole-body map of many classes, in a process of its own for its peak memory."""
    command = [sys.executable, __file__, "--large-child", *(["--quick"] if args.quick else [])]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return dict(json.loads(done.stdout))


def score_large(quick: bool) -> dict[str, Any]:
    """Time and peak memory of 512 x 512 x 600 voxels with 100 classes. Masks come from a file, as they would."""
    import resource
    import tempfile

    shape, classes = ((60, 96, 96), 10) if quick else ((600, 512, 512), 100)
    largest = 3_000 if quick else 400_000
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "pair.npy"
        make = (
            "import sys, numpy; sys.path.insert(0, sys.argv[1]); import organ_shapes;"
            f"p = organ_shapes.pair(0, {shape}, {classes}, 300, {largest}, (1.5, 0.8, 0.8));"
            "numpy.save(sys.argv[2], numpy.stack([p.prediction, p.reference]))"
        )
        subprocess.run([sys.executable, "-c", make, str(Path(__file__).parent), str(file)], check=True)
        prediction, reference = np.load(file)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds, _ = timed(lambda: case_scores(prediction, reference, (1.5, 0.8, 0.8), range(1, classes + 1)))
    masks_mb = (prediction.nbytes + reference.nbytes) / 1e6
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
    return {
        "shape": shape,
        "classes": classes,
        "seconds": seconds,
        "masks_mb": masks_mb,
        "before_mb": before * 1024 / 1e6,
        "peak_mb": peak_mb,
        "peak_over_masks": peak_mb / masks_mb,
    }


def scaling(args: argparse.Namespace) -> dict[str, Any]:
    """Seconds against the size of the volume (same organs) and against the number of classes (same volume)."""
    small = (40, 96, 96) if args.quick else (60, 160, 160)
    factors = (1, 2) if args.quick else (1, 2, 4, 8, 16)
    inner = organ_shapes.pair(0, small, 5, 1_000, 8_000 if args.quick else 40_000)
    volumes = []
    for factor in factors:
        shape = (small[0], round(small[1] * factor**0.5), round(small[2] * factor**0.5))
        volumes.append(measure(padded(inner, shape), 5))
    counts = (1, 3, 10) if args.quick else (1, 3, 10, 30, 100)
    shape = (40, 128, 128) if args.quick else (132, 384, 384)
    classes = [measure(organ_shapes.pair(1, shape, n, 500, 500 + 30_000 // n), n) for n in counts]
    plot(volumes, classes, args.out / "metrics_scaling.png")
    return {"volume": volumes, "classes": classes}


def padded(pair: organ_shapes.Pair, shape: tuple[int, ...]) -> organ_shapes.Pair:
    """The same organs in the middle of a larger volume."""
    before = [(n - m) // 2 for n, m in zip(shape, pair.reference.shape, strict=True)]
    widths = [(b, n - m - b) for b, n, m in zip(before, shape, pair.reference.shape, strict=True)]
    return organ_shapes.Pair(np.pad(pair.reference, widths), np.pad(pair.prediction, widths), pair.spacing_mm)


def measure(pair: organ_shapes.Pair, classes: int) -> dict[str, Any]:
    """Seconds of volseg and MONAI on a pair."""
    ours, _ = timed(lambda: score_volseg(pair, classes), repeats=3)
    monai, _ = timed(lambda: score_monai(pair, classes))
    return {"voxels": pair.reference.size, "classes": classes, "volseg": ours, "monai": monai}


def empty(args: argparse.Namespace) -> dict[str, dict[str, dict[str, str]]]:
    """What every tool says when the reference, the prediction or both are empty; an exception is named."""
    import surface_distance as deepmind
    import torch
    from medpy.metric import binary
    from monai.metrics import compute_dice, compute_hausdorff_distance, compute_surface_dice

    del args
    organ = np.zeros((20, 40, 40), bool)
    organ[5:12, 10:25, 12:30] = True
    nothing = np.zeros_like(organ)
    spacing = (3.0, 1.0, 1.0)
    table: dict[str, dict[str, dict[str, str]]] = {}
    for name, pred, ref in (
        ("missed", nothing, organ),
        ("spurious", organ, nothing),
        ("both empty", nothing, nothing),
    ):
        tensors = [torch.from_numpy(mask)[None, None] for mask in (pred, ref)]
        ours = case_scores(pred, ref, spacing, [1])[1]
        monai: dict[str, Any] = {"include_background": True, "spacing": list(spacing)}
        surfaces = lambda p=pred, r=ref: deepmind.compute_surface_distances(r, p, spacing)  # noqa: E731
        table[name] = {
            "volseg": {key: said(lambda k=key, o=ours: o[k]) for key in ("dice", "hd95", "nsd")},
            "monai": {
                "dice": said(lambda t=tensors: compute_dice(*t)),
                "hd95": said(lambda t=tensors, m=monai: compute_hausdorff_distance(*t, percentile=95, **m)),
                "nsd": said(lambda t=tensors, m=monai: compute_surface_dice(*t, [1.0], **m, use_subvoxels=True)),
            },
            "medpy": {
                "dice": said(lambda p=pred, r=ref: binary.dc(p, r)),
                "hd95": said(lambda p=pred, r=ref: binary.hd95(p, r, spacing)),
                "nsd": "not offered",
            },
            "surface-distance": {
                "dice": said(lambda p=pred, r=ref: deepmind.compute_dice_coefficient(r, p)),
                "hd95": said(lambda s=surfaces: deepmind.compute_robust_hausdorff(s(), 95)),
                "nsd": said(lambda s=surfaces: deepmind.compute_surface_dice_at_tolerance(s(), 1.0)),
            },
        }
    return table


def said(function: Callable[[], Any]) -> str:
    """The value as text, or the exception."""
    try:
        return f"{float(function()):.4g}"
    except Exception as error:
        return type(error).__name__


if __name__ == "__main__":
    sys.exit(main())
