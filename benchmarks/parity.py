"""Features of every DINOv2 beside the implementation of transformers, on shared random weights; parameter counts.

    python benchmarks/parity.py --models s,b   # minutes
    python benchmarks/parity.py                # S, B, L, g, each with and without registers; 9 GB of memory

Full depth in float32 at 518 pixels, and depth 2 in float64 at several sizes. For other sizes than 518, the models of
transformers are given the official position embedding, because their own interpolation differs. The normalised patch
tokens of the four taps are compared; their standard deviation is near 1. transformers computes attention step by step
(``eager``), volseg with PyTorch's fused kernel; with the same kernel the differences of S were exactly zero.

The weights are drawn at the scale of a trained model: matrices and embeddings N(0, 0.02), norms near 1, LayerScale
U(0.1, 1). So every block changes the features (``blocks`` in the table: mean change of the normalised features from the
first tap to the last) and none explodes.

Results of models that are not measured now are kept. Exit code 0: every model meets its target.
"""

from __future__ import annotations

import json
import sys
import warnings

from shared.arguments import check_choices, make_parser, words
from shared.record import Record, origin, write_json
from shared.text import say, table


def main() -> int:
    """Measure and write the table."""
    parser = make_parser(__doc__, "parity")
    parser.add_argument("--models", type=words, default=["s", "b", "l", "g"], help="(s,b,l,g)")
    parser.add_argument("--seed", type=int, default=0, help="of weights and images (%(default)s)")
    args = parser.parse_args()
    from encoders.parity_models import PUBLISHED, measure
    from volseg.config.encoders import CATALOGUE

    warnings.simplefilter("ignore")
    check_choices(parser, "--models", args.models, PUBLISHED)
    path = args.out / "parity.json"
    rows = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    for name in [f"dinov2_{size}14{suffix}" for size in PUBLISHED if size in args.models for suffix in ("", "_reg")]:
        say(name)
        rows[name] = {**measure(name, args.seed), **origin(), "seed": args.seed}
        rows = {key: rows[key] for key in CATALOGUE if key in rows}
        write_json(path, rows)
        (args.out / "README.md").write_text(markdown(rows), encoding="utf-8")
    print(markdown(rows))
    return 0 if all(row["met"] for row in rows.values()) else 1


def markdown(rows: dict[str, Record]) -> str:
    """Return the table of all models measured so far."""
    first = next(iter(rows.values()))
    sizes = [key for key in first["depth_2_float64"] if key != "target"]
    lines = [["model", "parameters", "published", "float32, 518x518", "target", "std", "blocks"]]
    lines[0] += [f"float64, depth 2, {size}" for size in sizes] + ["met"]
    for name, row in rows.items():
        full, shallow = row["full_depth_float32"], row["depth_2_float64"]
        cells = [name, f"{row['parameters']:,}", f"{row['published']:,}", f"{full['max_abs']:.1e}"]
        cells += [f"{full['target']:.0e}", f"{full['feature_std']:.2f}", f"{full['blocks']:.2f}"]
        cells += [f"{shallow[size]['max_abs']:.1e}" for size in sizes]
        lines.append([*cells, "yes" if row["met"] else "**no**"])
    dates, commits = ({row[key][:10] for row in rows.values()} for key in ("date", "commit"))
    machines = {row["hardware"]["cpu"] for row in rows.values()}
    return (
        "# Parity of the DINOv2 family\n\nLargest absolute difference of the patch tokens of four taps from "
        f"transformers {first['versions']['transformers']} (eager attention; volseg: sdpa) on shared random weights "
        f"(torch {first['versions']['torch']}). Target in float64: {first['depth_2_float64']['target']:.0e}. Published "
        "counts are without registers; 4 E are added for them. `std`: standard deviation of the features; `blocks`: "
        f"mean change of the features from the first tap to the last.\n\n{table(lines)}\n\n"
        f"{', '.join(sorted(dates))}, {', '.join(sorted(machines))}, commit {', '.join(sorted(commits))}: "
        "`python benchmarks/parity.py`\n"
    )


if __name__ == "__main__":
    sys.exit(main())
