"""Write a mask for each scan of a folder, on the scan's own grid."""

from __future__ import annotations

import argparse
import logging

from volseg.cli.progress import progress_bar


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument("--model", required=True, help="model.safetensors written by training")
    parser.add_argument("--input", required=True, help="a scan, or a folder of scans")
    parser.add_argument("--output", required=True, help="folder of the masks and summary.json")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps (default: auto)")
    parser.add_argument("--tta", action="store_true", help="average over mirrored copies (slower, a little better)")
    parser.add_argument(
        "--shard", type=_shard, metavar="I/N", help="take every N-th scan from the I-th (0/4 ... 3/4), for N jobs"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace masks of another model, input or setting")


def run(args: argparse.Namespace) -> int:
    """Predict.

    Returns:
        0 when every scan succeeded, 1 when some failed, 2 when all did.
    """
    from volseg.inference.folder import predict_folder
    from volseg.inference.predictor import Predictor

    if getattr(args, "debug", False):
        logging.getLogger("volseg").setLevel(logging.DEBUG)
    predictor = Predictor.from_file(args.model, device=args.device)
    with progress_bar("predict") as progress:
        summary = predict_folder(
            predictor,
            args.input,
            args.output,
            tta=args.tta,
            shard=args.shard,
            overwrite=args.overwrite,
            progress=progress,
        )
    done, skipped, failed = (summary.count(status) for status in ("done", "skipped", "failed"))
    print(f"{done} predicted, {skipped} there already, {failed} failed; see {summary.path}")
    return 0 if failed == 0 else 1 if done + skipped else 2


def _shard(text: str) -> tuple[int, int]:
    index, slash, count = text.partition("/")
    if not (slash and index.isdecimal() and count.isdecimal() and int(index) < int(count)):
        raise argparse.ArgumentTypeError(f"'{text}' is not I/N with 0 <= I < N, for example 0/4")
    return int(index), int(count)
