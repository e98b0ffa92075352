"""Progress bars and log lines of the commands: a bar per stage on a terminal, log lines alone elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from volseg.parallel import StageProgress


@contextmanager
def progress_bars(*, enabled: bool = True) -> Iterator[StageProgress | None]:
    """Yield a callback of (stage, done, in all) that moves a bar; ``None`` if disabled or if stderr is no terminal."""
    if not enabled or not sys.stderr.isatty():
        yield None
        return

    from tqdm import tqdm
    from tqdm.contrib.logging import logging_redirect_tqdm

    bars: dict[str, Any] = {}  # the bar of the stage that runs

    def update(stage: str, done: int, total: int | None) -> None:
        if stage not in bars:
            close()
            bars[stage] = tqdm(desc=stage, total=total, initial=max(0, done - 1), leave=False)
        bars[stage].total = total
        bars[stage].update(done - bars[stage].n)

    def close() -> None:
        while bars:
            bars.popitem()[1].close()

    with logging_redirect_tqdm():  # log lines appear above the bar
        try:
            yield update
        finally:
            close()
