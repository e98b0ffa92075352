"""Scores on the terminal, as ``volseg evaluate`` and ``volseg train`` print them."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from volseg.api import EvaluationResult


def print_scores(result: EvaluationResult) -> int:
    """Print the tables to stdout, and failed and missing cases to stderr.

    Returns:
        The exit code: 0 if every case was predicted and scored, 1 if some were not, 2 if all failed.
    """
    print(result.table)
    for case in result.evaluation.failed:
        print(f"failed: {case.method} {case.case}: {case.error}", file=sys.stderr)
    for case in result.evaluation.missing:
        print(f"no prediction, scored as empty: {case.method} {case.case}", file=sys.stderr)
    print("written: " + ", ".join(str(file) for file in result.files), file=sys.stderr)
    return result.exit_code
