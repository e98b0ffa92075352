"""List the preprocessed cases that trainings share, or remove some."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence

from volseg.config.sizes import format_size
from volseg.errors import ConfigError, counted
from volseg.preprocessing.cache_contents import CachedPlan, list_cache, remove_cached


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument(
        "folder",
        nargs="?",
        default="runs/preprocessed",
        metavar="FOLDER",
        help="data.cache, or preprocessed/ beside the run folders (default: %(default)s)",
    )
    parser.add_argument(
        "--older-than", type=float, default=0, metavar="DAYS", help="only what no training used in these days"
    )
    parser.add_argument(
        "--remove", nargs="+", default=(), metavar="NAME", help="remove DATASET/PLAN, DATASET or all; trainings go on"
    )


def run(args: argparse.Namespace) -> int:
    """List or remove; 1 if something is kept because a training uses it."""
    if not args.older_than >= 0:  # NaN, too
        raise ConfigError("--older-than is not a number of days", found=args.older_than, expected="0 or more")
    newest = time.time() - 86400 * args.older_than
    plans = [plan for plan in list_cache(args.folder) if plan.used <= newest]
    known = {"all", *(plan.name for plan in plans), *(plan.folder.parent.name for plan in plans)}
    unknown = [name for name in args.remove if name not in known]
    if unknown:
        hint = f"volseg cache {args.folder} lists the names"
        raise ConfigError("the cache holds nothing of this name", found=", ".join(unknown), hint=hint)
    if not args.remove:
        _print(plans, args.folder)
        return 0
    wanted = [plan for plan in plans if {"all", plan.name, plan.folder.parent.name} & {*args.remove}]
    kept = [plan for plan in wanted if not remove_cached(plan)]
    for plan in wanted:
        print(f"{plan.name}: {'kept, a training uses it' if plan in kept else 'removed'}")
    return 1 if kept else 0


def _print(plans: Sequence[CachedPlan], folder: str) -> None:
    """Print a table: one line per data set and plan, and the sum."""
    rows = [
        (plan.name, str(plan.cases), format_size(plan.case_bytes), format_size(plan.token_bytes), _day(plan.used))
        for plan in plans
    ]
    cases, size, tokens = (
        sum(getattr(plan, name) for plan in plans) for name in ("cases", "case_bytes", "token_bytes")
    )
    rows = [("name", "cases", "size", "tokens", "used"), *rows]
    rows.append(
        (
            f"{counted(len(plans), 'plan')} in {folder}",
            str(cases),
            format_size(size),
            format_size(tokens),
            "",
        )
    )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for name, *values in rows:
        cells = [value.rjust(width) for value, width in zip(values, widths[1:], strict=True)]
        print("  ".join([name.ljust(widths[0]), *cells]).rstrip())


def _day(seconds: float) -> str:
    return time.strftime("%Y-%m-%d", time.localtime(seconds))
