"""Write a mask for each scan of a folder, on the scan's own grid."""

from __future__ import annotations

import argparse
import logging
import os

from volseg.api import predict
from volseg.cli.progress import progress_bars
from volseg.cli.signals import stops_in_order
from volseg.config.mask_formats import MASK_FORMATS
from volseg.config.schema import PRECISIONS
from volseg.config.sizes import parse_size
from volseg.errors import ConfigError
from volseg.heap import reuse_freed_memory
from volseg.inference.cohort.shard import TorchrunRank, device_of_rank, torchrun_rank, wait_for_all


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    add = parser.add_argument
    add(
        *("-m", "--model"),
        required=True,
        action="extend",
        nargs="+",
        metavar="MODEL",
        help="model.safetensors, or the run folder of a finished training; several for an ensemble",
    )
    add(
        *("-i", "--input"),
        required=True,
        help="a scan (a file, or a DICOM series: folder, zip or one of its files), a folder of scans, or a .txt that "
        "lists one case a line",
    )
    add("-o", "--output", required=True, help="folder of the masks and summary.json; or a mask's file, for one scan")
    add("--format", dest="mask_format", choices=MASK_FORMATS, help="format of the masks (default: that of each scan)")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps (default: auto)")
    add("--tta", action="store_true", help="average over mirrored copies (test-time augmentation)")
    add("--no-skip-air", dest="skip_air", action="store_false", help="also predict windows that hold only air")
    add(
        "--max-memory",
        type=_size,
        metavar="SIZE",
        help="limit of the memory beside model, scan and mask, e.g. 4GB, 1.5GiB (default: 4GB, or more if needed)",
    )
    add(
        "--max-device-memory",
        type=_size,
        metavar="SIZE",
        help="the same for a GPU (default: what is free, less a margin)",
    )
    add("--precision", default="auto", choices=PRECISIONS, help="of the network; auto is bf16 on GPUs, 32 on CPUs")
    add(
        "--postprocess",
        nargs="+",
        metavar="KEY=VALUE",
        help="in place of the model's postprocessing, for example largest_component=all min_volume_ml=2; or none",
    )
    add("--split-classes", action="store_true", help="write CASE/CLASS.nii.gz (0 and 1) instead of CASE.nii.gz")
    add("--probabilities", action="store_true", help="also write the probability of each class (4D NIfTI, large)")
    add("--uncertainty", action="store_true", help="also write a map of the entropy")
    add(
        "--shard", type=_shard, metavar="I/N", help="predict part I of N (0/4 ... 3/4), of about equal size, for N jobs"
    )
    add("--resample-channels", action="store_true", help="resample channels on other grids to that of the first")
    add("--strict", action="store_true", help="fail for scans that are far from all training scans (default: warn)")
    add("--overwrite", action="store_true", help="replace masks that volseg wrote with another model, input or setting")


def run(args: argparse.Namespace) -> int:
    """Predict; under torchrun each process predicts its share of the scans.

    Returns:
        0 if every scan succeeded, 1 if some failed, 2 if all failed.

    Raises:
        VolsegError: Nothing can be predicted.
        KeyboardInterrupt: Ctrl-C; finished masks are kept and recorded.
        SystemExit: SIGTERM (143), likewise.
    """
    reuse_freed_memory()
    with stops_in_order("finished cases are kept; the same command predicts the others"):
        rank = torchrun_rank(os.environ)
        if rank is not None and args.shard is not None:
            raise ConfigError(
                "--shard cannot be combined with torchrun, which distributes the scans",
                found=f"RANK={rank.shard[0]} of WORLD_SIZE={rank.shard[1]}",
                hint="omit --shard, or start without torchrun",
            )
        code = _predict(args, rank)
        if rank is not None:
            wait_for_all(rank, os.environ)
        return code


def _predict(args: argparse.Namespace, rank: TorchrunRank | None) -> int:
    if getattr(args, "debug", False):
        logging.getLogger("volseg").setLevel(logging.DEBUG)
    logging.getLogger("highdicom").setLevel(logging.WARNING)  # it reports each module of attributes that it copies
    with progress_bars() as progress:
        summary = predict(
            args.model,
            args.input,
            args.output,
            device=device_of_rank(args.device, rank),
            tta=args.tta,
            skip_air=args.skip_air,
            max_memory=args.max_memory,
            max_device_memory=args.max_device_memory,
            precision=args.precision,
            postprocess=[] if args.postprocess == ["none"] else args.postprocess,
            mask_format=args.mask_format,
            split_classes=args.split_classes,
            probabilities=args.probabilities,
            uncertainty=args.uncertainty,
            shard=args.shard if rank is None else rank.shard,
            overwrite=args.overwrite,
            resample_channels=args.resample_channels,
            strict=args.strict,
            progress=progress,
        )
    done, skipped, failed = (summary.count(status) for status in ("done", "skipped", "failed"))
    print(f"{done} predicted, {skipped} skipped (up to date), {failed} failed; see {summary.path}", flush=True)
    return 0 if failed == 0 else 1 if done + skipped else 2


def _shard(text: str) -> tuple[int, int]:
    index, slash, count = text.partition("/")
    if not (slash and index.isdecimal() and count.isdecimal() and int(index) < int(count)):
        raise argparse.ArgumentTypeError(f"'{text}' is not I/N with 0 <= I < N, for example 0/4")
    return int(index), int(count)


def _size(text: str) -> int:
    try:
        return parse_size(text)
    except ConfigError as error:
        raise argparse.ArgumentTypeError(str(error).replace("\n", ";")) from error
