"""Speed of prediction beside MONAI's sliding window and nnU-Net's export and command, with the proof of equality.

    python benchmarks/inference.py                                    # all parts; hours, nearly all of it MONAI's
    python benchmarks/inference.py --parts window --encoders dinov2_b14 --mirror all --pairs 1   # one slow cell
    python benchmarks/inference.py --parts window --volume 64,128,128 # the same on a part of the volume
    python benchmarks/inference.py --quick                            # tiny, to see that it works; runs/quick

Parts: ``window`` (a volume of 128 x 192 x 192, MONAI's ``SlidingWindowInferer`` at its best batch), ``hippocampus``
(one window a case), ``pipeline`` (a CT of the trunk, stage by stage), ``restore`` (logits to mask, nnU-Net's export)
and ``shell`` (five cases by the commands, start-up included). nnU-Net is made by ``benchmarks/nnunet.py``; without it
those parts measure volseg alone. Every cell writes its own JSON, so cells may be measured one by one; the table takes
all that are there. Weights are random: speed and memory do not depend on them. Float32; both sides use the same
threads (nnU-Net's command takes all cores, and volseg's beside it too).
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
PARTS = ("window", "hippocampus", "pipeline", "restore", "shell")


def main() -> int:
    """Run the parts and write the tables."""
    args = parse_arguments()
    os.environ.setdefault("OMP_NUM_THREADS", str(args.threads))
    import torch
    from inference_commands import pipeline, shell
    from inference_restore import restore
    from inference_tables import write_tables
    from inference_window import hippocampus, window

    from volseg.cli.heap import reuse_freed_memory

    torch.set_num_threads(args.threads)
    reuse_freed_memory()  # as the commands do; MONAI runs in the same process and gains from it too
    for part in args.parts:
        {"window": window, "hippocampus": hippocampus, "pipeline": pipeline, "restore": restore, "shell": shell}[part](
            args
        )
    print(write_tables(args.out))
    return 0


def parse_arguments() -> argparse.Namespace:
    """Command line; ``--quick`` takes small values for what is not given."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", type=words, default=list(PARTS), help=", ".join(PARTS))
    parser.add_argument("--encoders", type=words, help="of window, hippocampus and shell (dinov2_s14, dinov2_b14)")
    parser.add_argument("--mirror", type=words, default=["none", "all"], help="none, all (%(default)s)")
    parser.add_argument("--volume", type=size, help="D,H,W of the window part (128,192,192)")
    parser.add_argument("--pairs", type=int, help="pairs in every cell (5)")
    parser.add_argument("--batch", type=int, help="MONAI's sw_batch_size (the fastest of 1, 2, 4 in a trial)")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="threads (%(default)s)")
    parser.add_argument("--data", type=Path, default=HERE.parents[1] / "shared" / "data", help="folder of the scans")
    parser.add_argument("--nnunet", type=Path, default=HERE / ".nnunet", help="made by nnunet.py")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that it works")
    parser.add_argument("--out", type=Path, help="folder of the results (benchmarks/results)")
    args = parser.parse_args()
    args.out = args.out or (Path("runs") / "quick" if args.quick else HERE / "results")
    args.encoders = args.encoders or (["tiny"] if args.quick else ["dinov2_s14", "dinov2_b14"])
    args.pairs = args.pairs or (2 if args.quick else 5)
    unknown = [part for part in args.parts if part not in PARTS]
    unknown += [mirror for mirror in args.mirror if mirror not in ("none", "all")]
    if unknown:
        parser.error(f"there is no {', '.join(unknown)}")
    return args


def words(text: str) -> list[str]:
    """Comma-separated words."""
    return text.split(",")


def size(text: str) -> tuple[int, int, int]:
    """Three comma-separated numbers."""
    depth, height, width = (int(number) for number in text.split(","))
    return depth, height, width


if __name__ == "__main__":
    sys.exit(main())
