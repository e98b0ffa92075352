"""Check every case of a data set, print what it is and what training will do, and write the plan that training uses."""

from __future__ import annotations

import argparse

from volseg.api import check, plan_dataset
from volseg.cli.default_config import CONFIG_HELP, default_config
from volseg.cli.progress import progress_bars


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("dataset", metavar="DATASET", help="data set folder, or a CSV of cases")
    parser.add_argument(
        "--out",
        metavar="FILE",
        help="where to write the plan as JSON, and beside it a picture; with --check-only, the findings as JSON",
    )
    parser.add_argument(
        "--check-only",
        action="store_true",
        help="list all findings and write no plan; exit code 1 if there are errors, 0 if there are only warnings",
    )
    parser.add_argument(
        "--grid-tolerance-mm",
        type=float,
        default=0.01,
        metavar="MM",
        help="grids of image, channels and label are the same if their corners are this close (%(default)s)",
    )
    parser.add_argument(
        "--accept-header-of",
        choices=["image"],
        help="take labels of the same shape to lie on the grid of the image, whatever their header states",
    )
    parser.add_argument("--workers", type=int, default=2, metavar="N", help="processes that read cases (%(default)s)")
    parser.add_argument("--memory", metavar="SIZE", help="patch and batch fill this memory in training, such as 8GB")
    parser.add_argument("--config", metavar="NAME", help=f"network whose memory is counted: {CONFIG_HELP}")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="for example plan.token_stride=4 model.encoder=identity"
    )


def run(args: argparse.Namespace) -> int:
    """Plan and print the summary, or check and print the findings; errors are reported together."""
    if args.check_only:
        return _check(args)
    with progress_bars() as progress:
        result = plan_dataset(
            args.dataset,
            args.overrides,
            config=args.config or default_config(args.overrides),
            memory=args.memory,
            out=args.out,
            grid_tolerance_mm=args.grid_tolerance_mm,
            accept_header_of=args.accept_header_of,
            workers=args.workers,
            progress=progress,
        )
    print(result.summary)
    for file in result.files:
        print(f"written: {file}")
    return 0


def _check(args: argparse.Namespace) -> int:
    """Print the findings; 1 if there are errors."""
    from volseg.planning.examine import check_replaceable, write_findings

    if args.out is not None:
        check_replaceable(args.out)
    with progress_bars() as progress:
        findings = check(
            args.dataset,
            args.overrides,
            grid_tolerance_mm=args.grid_tolerance_mm,
            accept_header_of=args.accept_header_of,
            workers=args.workers,
            progress=progress,
        )

    from volseg.io.findings import counts, errors_of, report

    if findings:
        print(report(findings))
    print(f"{args.dataset}: {counts(findings)}")
    if args.out is not None:
        write_findings(args.out, findings)
    return 1 if errors_of(findings) else 0
