"""Features of every encoder beside the implementation of transformers, on shared random weights; parameter counts.

    python benchmarks/parity.py --models dinov3_s16,clip_b16   # a minute
    python benchmarks/parity.py                                # all but DINOv2's g: minutes; 4 GB of memory
    python benchmarks/parity.py --models dinov2_g14            # 9 GB of memory

Full depth in float32, and depth 2 in float64 at several sizes. The normalised patch tokens of the four taps are
compared; their standard deviation is near 1. transformers uses another attention kernel than volseg.

transformers is given what it computes otherwise than the official code: DINOv2's position embedding at other sizes than
518, and in float64 the angles of DINOv3, which it rounds to float32.

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

FAMILIES = {"dinov2": "DINOv2", "dinov3": "DINOv3", "vit": "ViT", "clip": "CLIP's image tower"}


def main() -> int:
    """Measure and write the tables."""
    parser = make_parser(__doc__, "parity")
    parser.add_argument("--models", type=words, help="encoders of the catalogue (all but dinov2_g14 and its _reg)")
    parser.add_argument("--seed", type=int, default=0, help="of weights and images (%(default)s)")
    args = parser.parse_args()
    from encoders.parity_models import compared, measure

    warnings.simplefilter("ignore")
    args.models = args.models or [name for name in compared() if not name.startswith("dinov2_g14")]
    check_choices(parser, "--models", args.models, compared())
    path = args.out / "parity.json"
    rows = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    for name in args.models:
        say(name)
        rows[name] = {**measure(name, args.seed), **origin(), "seed": args.seed}
        rows = {key: rows[key] for key in compared() if key in rows}
        write_json(path, rows)
        (args.out / "README.md").write_text(markdown(rows), encoding="utf-8")
    print(markdown(rows))
    return 0 if all(row["met"] for row in rows.values()) else 1


def markdown(rows: dict[str, Record]) -> str:
    """Return the tables of all models measured so far."""
    first = next(iter(rows.values()))
    text = (
        "# Parity of the encoders\n\nLargest absolute difference of the patch tokens of four taps from transformers "
        f"{first['versions']['transformers']} on shared random weights (torch {first['versions']['torch']}), with "
        f"different attention kernels. Target in float64, at depth 2: {first['depth_2_float64']['target']:.0e}. "
        "`expected` parameters: DINOv2's published counts, and 4 E for the registers; for the others those of "
        "transformers. `std`: standard deviation of the features; `blocks`: mean change of the features from the first "
        "tap to the last.\n"
    )
    for family, title in FAMILIES.items():
        own = {name: row for name, row in rows.items() if name.startswith(f"{family}_")}
        if own:
            text += f"\n## {title}\n\n{_table(own)}\n\n{_origins(own)}\n"
    return text


def _table(rows: dict[str, Record]) -> str:
    """Return the table of one family, whose models are compared at the same sizes."""
    sizes = [key for key in next(iter(rows.values()))["depth_2_float64"] if key != "target"]
    lines = [["model", "parameters", "expected", f"float32, {sizes[0]}", "target", "std", "blocks"]]
    lines[0] += [f"float64, {size}" for size in sizes] + ["met"]
    for name, row in rows.items():
        full, shallow = row["full_depth_float32"], row["depth_2_float64"]
        cells = [name, f"{row['parameters']:,}", f"{row['expected']:,}", f"{full['max_abs']:.1e}"]
        cells += [f"{full['target']:.0e}", f"{full['feature_std']:.2f}", f"{full['blocks']:.2f}"]
        cells += [f"{shallow[size]['max_abs']:.1e}" for size in sizes]
        lines.append([*cells, "yes" if row["met"] else "**no**"])
    return table(lines)


def _origins(rows: dict[str, Record]) -> str:
    dates, commits = ({row[key][:10] for row in rows.values()} for key in ("date", "commit"))
    machines = {row["hardware"]["cpu"] for row in rows.values()}
    where = f"{', '.join(sorted(dates))}, {', '.join(sorted(machines))}, commit {', '.join(sorted(commits))}"
    return f"{where}: `python benchmarks/parity.py`"


if __name__ == "__main__":
    sys.exit(main())
