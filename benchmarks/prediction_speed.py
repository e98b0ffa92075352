"""Speed of prediction beside MONAI's sliding window and nnU-Net's export and command, with the proof of equality.

    python benchmarks/prediction_speed.py                                    # all parts; hours, mostly MONAI's
    python benchmarks/prediction_speed.py --parts window --encoders dinov2_b14 --mirror all --pairs 1   # one slow cell
    python benchmarks/prediction_speed.py --parts window --volume 64,128,128 # the same on a part of the volume
    python benchmarks/prediction_speed.py --quick                            # tiny, to check that it works; runs/quick

Parts: ``window`` (a volume of 128 x 192 x 192, MONAI's ``SlidingWindowInferer`` at its best batch), ``hippocampus``
(one window per case), ``pipeline`` (a CT of the trunk, stage by stage), ``restore`` (logits to mask, nnU-Net's export)
and ``shell`` (five cases by the commands, start-up included). ``benchmarks/nnunet.py`` sets nnU-Net up; without it
those parts measure volseg alone. Every cell writes its own JSON, so cells may be measured one by one; the tables hold
all of them. Weights are random: speed and memory do not depend on them. Float32; both sides use the same threads (the
commands of nnU-Net and volseg use all cores).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from shared.arguments import (
    add_quick,
    add_threads,
    check_choices,
    make_parser,
    size,
    use_quick_folder,
    use_threads,
    words,
)
from shared.record import BENCHMARKS, write_page

PARTS = ("window", "hippocampus", "pipeline", "restore", "shell")


def main() -> int:
    """Run the parts and write the tables."""
    args = parse_arguments()
    use_threads(args.threads)
    from prediction.commands import pipeline, shell
    from prediction.restoring import restore
    from prediction.speed_tables import write_tables
    from prediction.windows import hippocampus, window
    from volseg.heap import reuse_freed_memory

    reuse_freed_memory()  # as the commands do; MONAI runs in the same process and gains from it too
    measure = {"window": window, "hippocampus": hippocampus, "pipeline": pipeline, "restore": restore, "shell": shell}
    for part in args.parts:
        measure[part](args)
    write_page(args.out / "README.md", write_tables(args.out))
    return 0


def parse_arguments() -> argparse.Namespace:
    """Parse the command line; ``--quick`` sets small values for arguments that are not given."""
    parser = make_parser(__doc__, "prediction")
    parser.add_argument("--parts", type=words, default=list(PARTS), help=", ".join(PARTS))
    parser.add_argument("--encoders", type=words, help="of window, hippocampus and shell (dinov2_s14,dinov2_b14)")
    parser.add_argument("--mirror", type=words, default=["none", "all"], help="(none,all)")
    parser.add_argument("--volume", type=size, help="D,H,W of the window part (128,192,192)")
    parser.add_argument("--pairs", type=int, help="pairs in every cell (5)")
    parser.add_argument("--batch", type=int, help="MONAI's sw_batch_size (the fastest of 1, 2, 4 in a trial)")
    add_threads(parser)
    data = BENCHMARKS.parents[1] / "shared" / "data"
    parser.add_argument("--data", type=Path, default=data, help="folder of the scans (%(default)s)")
    parser.add_argument("--nnunet", type=Path, default=BENCHMARKS / ".nnunet", help="made by nnunet.py (%(default)s)")
    add_quick(parser)
    args = parser.parse_args()
    args.encoders = args.encoders or (["tiny"] if args.quick else ["dinov2_s14", "dinov2_b14"])
    args.pairs = args.pairs or (2 if args.quick else 5)
    check_choices(parser, "--parts", args.parts, PARTS)
    check_choices(parser, "--mirror", args.mirror, ("none", "all"))
    use_quick_folder(args, "prediction")
    return args


if __name__ == "__main__":
    sys.exit(main())
