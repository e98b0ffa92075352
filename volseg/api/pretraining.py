"""Self-supervised pretraining of an encoder."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from volseg.api.arguments import PathLike, check_overrides, check_type
from volseg.api.training import run_settings

if TYPE_CHECKING:
    from volseg.config.schema import Config
    from volseg.parallel import StageProgress


def pretrain(
    config: PathLike | Mapping[str, Any] | Config | None = None,
    overrides: Sequence[str] = (),
    *,
    resume: bool | PathLike = False,
    progress: StageProgress | None = None,
) -> Path:
    """Pretrain the slice encoder on scans without labels, with DINOv2's objective.

    In a script that ``torchrun`` started, its processes train one encoder together.

    Args:
        config: YAML file, name of a configuration of the package, nested mapping or configuration; ``None`` takes the
            configuration ``pretrain``, or that of the resumed run.
        overrides: ``key=value`` strings that override it, such as ``data.root=FOLDER`` or ``train.max_minutes=60``.
        resume: Continue the interrupted run in this folder, or with ``True`` in the folder ``output``, as
            :func:`volseg.train` does.
        progress: Called with a stage (``preprocess``, ``train``) and the number of finished and of all scans or steps.

    Returns:
        The file of the encoder, ``model.safetensors`` in the run folder; ``model.weights`` takes it, or the folder.

    Raises:
        ConfigError: A setting is invalid, or is not that of the resumed run.
        DataError: There are no scans, or one cannot be used, or they changed since the resumed run began.
        ModelFileError: The weight file or the checkpoint cannot be used.
        OutputError: The run folder exists already, or cannot be written.
        RankLostError: Another process of ``torchrun`` has ended, which shows the error.
    """
    from volseg.config.schema import Config
    from volseg.inference.cohort.shard import torchrun_rank

    check_type("config", config, str, Path, Mapping, Config, type(None))
    check_type("resume", resume, bool, str, Path)
    check_overrides(overrides)
    if config is None and not resume:
        config = "pretrain"
    several = torchrun_rank(os.environ) is not None
    early = None if several else run_settings(config, overrides, resume)  # before torch is imported

    from volseg.device import deterministic_algorithms, full_float32
    from volseg.pretraining.experiment import prepare_together
    from volseg.pretraining.run import pretrain as pretrain_encoder
    from volseg.training.ranks import joined_ranks

    with joined_ranks(os.environ) as ranks, ExitStack() as held:
        with ranks.together():
            settings = early or run_settings(config, overrides, resume)
        experiment = held.enter_context(prepare_together(settings, progress, ranks, resume=bool(resume)))
        with deterministic_algorithms(settings.deterministic), full_float32():
            return pretrain_encoder(experiment, progress, ranks)
