"""The training samples of a run: patches, or patches with stored tokens, in endless batches."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from itertools import count, islice
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, default_collate

from volseg.config.schema import Config
from volseg.config.sizes import parse_size
from volseg.data.augment import build_augmentation
from volseg.data.datasets import PatchDataset, TokenDataset
from volseg.data.tokens import cache_tokens
from volseg.errors import VolsegError, counted
from volseg.models.contracts import SegmentationNetwork
from volseg.parallel import StageProgress, stage_progress
from volseg.training.device_samples import DeviceSamples
from volseg.training.experiment import Experiment
from volseg.training.frozen_encoder import FrozenEncoder
from volseg.training.ranks import ALONE, Ranks, share_of_batch
from volseg.training.stop import end_with_parent_only

logger = logging.getLogger(__name__)

ENDLESS = 2**40
"""Samples of a run; it ends when its budget is spent."""


def training_samples(
    experiment: Experiment, model: SegmentationNetwork, progress: StageProgress | None, ranks: Ranks = ALONE
) -> Dataset[dict[str, Any]]:
    """Return the run's samples: patches that are cut and augmented on the fly, or variants with stored tokens.

    On a GPU, patches are augmented there.
    """
    samples: PatchDataset | TokenDataset
    if experiment.config.data.cache_tokens:
        stored = token_samples(experiment, model, progress, samples=ENDLESS) if ranks.is_first else None
        stored = ranks.from_first(stored)
        assert stored is not None
        samples = stored
    else:
        samples = patch_samples(experiment)
    device = next(model.parameters()).device
    return DeviceSamples(samples, device) if device.type == "cuda" else samples


def patch_samples(experiment: Experiment) -> PatchDataset:
    """Return the run's patches."""
    config = experiment.config
    return PatchDataset(
        experiment.train_cases,
        experiment.plan,
        build_augmentation(experiment.plan, config.augment),
        seed=config.seed,
        halo=(config.model.adjacent_slices - 1) // 2,
        foreground_fraction=config.train.foreground_fraction,
        samples=ENDLESS,
    )


def batches(
    samples: Dataset[dict[str, Any]], config: Config, first_step: int, ranks: Ranks = ALONE
) -> Iterator[list[dict[str, Any]]]:
    """Iterate endlessly over the batches of each step, ``train.accumulate`` of them, from ``first_step`` on.

    Sample ``i`` is the same in every resumed run. Several processes share out the samples of each batch in order.
    """
    settings = config.train
    assert settings.batch_size is not None  # `prepare` fills it in from the plan
    size = share_of_batch(settings.batch_size, ranks.size)
    first = first_step * settings.batch_size * settings.accumulate + ranks.rank * size
    loader = DataLoader(
        _Reported(samples),
        collate_fn=_collate,
        batch_size=size,
        sampler=(index for start in count(first, settings.batch_size) for index in range(start, start + size)),
        num_workers=config.data.workers,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=end_with_parent_only,
    )
    stream: Iterator[Any] = iter(samples.batches(loader) if isinstance(samples, DeviceSamples) else loader)
    while step_batches := list(islice(stream, settings.accumulate)):
        for batch in step_batches:
            if isinstance(batch, VolsegError):
                raise batch
        yield step_batches


class _Reported(Dataset[Any]):
    """Samples that return a `VolsegError` instead of raising it, which would wrap it in a worker's traceback."""

    def __init__(self, samples: Dataset[dict[str, Any]]) -> None:
        self._samples = samples

    def __getitem__(self, index: int) -> dict[str, Any] | VolsegError:
        try:
            return self._samples[index]
        except VolsegError as error:
            return error


def _collate(samples: list[Any]) -> Any:
    """Return a batch, or the first error among its samples; what was drawn for each sample stays a list."""
    if error := next((sample for sample in samples if isinstance(sample, VolsegError)), None):
        return error
    drawn = [sample.pop("drawn") for sample in samples if "drawn" in sample]
    return {**default_collate(samples), **({"drawn": drawn} if drawn else {})}


def token_samples(
    experiment: Experiment,
    model: SegmentationNetwork,
    progress: StageProgress | None,
    samples: int,
) -> TokenDataset:
    """Complete the token cache and return the run's training samples.

    Args:
        experiment: Cases, plan and configuration.
        model: The network of the run, on its device.
        progress: Called with the stage ``tokens`` and the number of finished and of all cases.
        samples: Length of the data set.

    Raises:
        ConfigError: The cache would be larger than ``data.cache_limit``.
        OutputError: The cache folder cannot be written to.
    """
    config, plan = experiment.config, experiment.plan
    augmentation = build_augmentation(plan, config.augment)
    what = f"{counted(len(experiment.train_cases), 'case')} x {counted(config.data.token_variants, 'variant')}"
    logger.info("encoding %s, unless their tokens are in the cache", what)
    cases = cache_tokens(
        experiment.train_cases,
        FrozenEncoder(model, plan, config.model.encoder),
        # flips along depth are left to the samples: they only reverse the tokens
        replace(augmentation, mirror_axes=tuple(axis for axis in plan.mirror_axes if axis != 0)),
        variants=config.data.token_variants,
        seed=config.seed,
        limit_bytes=parse_size(config.data.cache_limit),
        region_indices=plan.region_indices,
        progress=stage_progress(progress, "tokens"),
    )
    logger.info("tokens of %s in %s", what, cases[0][0].folder.parents[1])
    return TokenDataset(
        cases,
        plan,
        samples=samples,
        seed=config.seed,
        foreground_fraction=config.train.foreground_fraction,
        halo=(config.model.adjacent_slices - 1) // 2,
        mirror=config.augment.mirror,
    )
