"""Remarks of the readers of scans: what a file states that is doubtful or was corrected, and is accepted."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

from volseg.io.findings import KINDS, Finding

logger = logging.getLogger(__name__)

_collected: ContextVar[list[Finding] | None] = ContextVar("collected", default=None)


def remark(kind: str, file: Path, message: str) -> None:
    """Report something about a file that is read: as a finding within :func:`collect`, else in the log.

    Args:
        kind: A key of ``findings.KINDS``.
        file: The scan or mask.
        message: What was found in it.
    """
    findings = _collected.get()
    if findings is not None:
        findings.append(Finding(kind, (file,), message))
        return
    level = logging.INFO if KINDS[kind].severity == "note" else logging.WARNING
    logger.log(level, "%s: %s: %s", file, KINDS[kind].title, message)


@contextmanager
def collect() -> Iterator[list[Finding]]:
    """Collect the remarks of the readers that are called in the block, in this thread.

    Yields:
        The list to which they are appended.
    """
    findings: list[Finding] = []
    token = _collected.set(findings)
    try:
        yield findings
    finally:
        _collected.reset(token)
