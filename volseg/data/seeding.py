"""The random state of one sample, from the seed of the run and the index of the sample."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def seeded(seed: int, *index: int) -> Iterator[None]:
    """Seed torch, numpy and random from (seed, index ...) inside the block and restore their states after it.

    Restoring matters when samples are made in the training process: the network's random numbers (drop path) must not
    depend on the number of workers.
    """
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002 - libraries use it
    words = np.random.SeedSequence([seed, *index]).generate_state(3)
    try:
        random.seed(int(words[0]))
        np.random.seed(int(words[1]))  # noqa: NPY002
        torch.default_generator.manual_seed(int(words[2]))  # the CPU's only: CUDA's belongs to the network
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002
        torch.set_rng_state(states[2])
