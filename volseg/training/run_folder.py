"""The folder of a run: what may be in it before the run, and its lock."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from volseg.errors import OutputError
from volseg.io.atomic import remove_stale
from volseg.io.locks import folder_lock
from volseg.planning.examine import FILE_NAME as FINDINGS
from volseg.training.checkpoint import CHECKPOINTS
from volseg.training.inputs import INPUTS_FILE, PLAN_FILE, SPLIT_FILE
from volseg.training.resume import CONFIG_FILE

logger = logging.getLogger(__name__)

BEFORE_STEP_1 = (CONFIG_FILE, PLAN_FILE, "plan.png", SPLIT_FILE, INPUTS_FILE, FINDINGS, "provenance.json")
"""Files of a run folder before the first step; a new run replaces them."""
RUN_FILES = ("checkpoint", "metrics.jsonl", "model.safetensors", "model_best.safetensors", "progress.png", "validation")
"""Files of a run folder that only ``--resume`` may change."""


@contextmanager
def run_folder(folder: Path, command: str, *, resume: bool, resumed: bool) -> Iterator[None]:
    """Make the run folder and hold it.

    A run that was refused or stopped before its first step left nothing to lose: its folder is used again.

    Args:
        folder: The folder.
        command: What runs in it, for the message to others.
        resume: The run may continue one in the folder.
        resumed: There is a checkpoint from which it continues.

    Raises:
        OutputError: The folder holds a run that is not resumed, or other files.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        found, hint = error.strerror or error, "choose another output="
        raise OutputError("the output folder cannot be written", file=folder, found=found, hint=hint) from error
    with folder_lock(folder, command):
        others = sorted({entry.name for entry in folder.iterdir() if not entry.name.startswith(".")} - {*BEFORE_STEP_1})
        if others and not resume and not {*others} & {*RUN_FILES}:
            raise OutputError(
                "the output folder holds other files",
                file=folder,
                found=", ".join(others[:5]),
                expected="a new or empty folder",
                hint="choose another output=",
            )
        if others and not resume:
            raise OutputError(
                "there is a run in the output folder already",
                file=folder,
                hint="add --resume to continue it, or choose another output=",
            )
        if resume and not resumed:
            logger.warning("--resume: no checkpoint in %s, the run starts anew", folder)
        for written in (folder, folder / CHECKPOINTS):
            remove_stale(written)
        yield
