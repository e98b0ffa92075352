"""Training samples for a DataLoader: the index of a sample decides everything about it."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from volseg.data.patches import PatchSource, sample_patch
from volseg.errors import DataError
from volseg.planning.plan import Plan

Augmentation = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


class PatchDataset(Dataset[dict[str, Any]]):
    """Random patches. Sample ``i`` is the same with any number of workers, in any order, and after a resume.

    Every run through all cases takes each once, in an order of its own.

    Args:
        cases: Preprocessed cases.
        plan: Plan.
        augmentation: (image (C, D + 2 halo, H, W), label (D + 2 halo, H, W)) -> same; ``None`` for none.
        samples: Length: steps times batch size.
        seed: Seed of the run.
        foreground_fraction: Share of patches centred on foreground.
        halo: Neighbour slices on either side that the network wants.
    """

    def __init__(
        self,
        cases: Sequence[PatchSource],
        plan: Plan,
        augmentation: Augmentation | None = None,
        *,
        samples: int,
        seed: int = 0,
        foreground_fraction: float = 0.66,
        halo: int = 0,
    ) -> None:
        if not cases:
            raise DataError("there is no case to train on")
        self.cases = tuple(cases)
        self.plan = plan
        self.augmentation = augmentation
        self.samples = samples
        self.seed = seed
        self.foreground_fraction = foreground_fraction
        self.halo = halo

    def __len__(self) -> int:
        return self.samples

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Sample ``index``.

        Returns:
            ``image`` (C, D + 2 halo, H, W) float32, ``label`` (D, H, W) int64 with -1 ignored, ``case`` its name.
        """
        if not 0 <= index < self.samples:
            raise IndexError(index)
        case = self.cases[case_index(self.seed, index, len(self.cases))]
        with seeded(self.seed, index):
            image, label = self._sample(case, np.random.default_rng([self.seed, index]))
        depth = self.plan.patch_size[0]
        return {"image": image, "label": label[self.halo : self.halo + depth].long(), "case": case.id}

    def _sample(self, case: PatchSource, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        arrays = sample_patch(case, self.plan, rng, self.foreground_fraction, self.halo)
        image, label = (torch.from_numpy(array) for array in arrays)
        if self.augmentation is not None:
            image, label = self.augmentation(image, label)
        return image.contiguous(), label


def case_index(seed: int, index: int, count: int) -> int:
    """Which of ``count`` cases sample ``index`` is taken from: each once a turn, in an order of the turn's own."""
    turn, place = divmod(index, count)
    return int(np.random.default_rng([seed, turn, count]).permutation(count)[place])


@contextmanager
def seeded(seed: int, *index: int) -> Iterator[None]:
    """Seeds torch, numpy and random from (seed, index ...) inside the block and restores them after it.

    Restoring matters where samples are made in the training process: the network's own chance (drop path) must not
    depend on the number of workers.
    """
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002 - libraries use it
    words = np.random.SeedSequence([seed, *index]).generate_state(3)
    try:
        random.seed(int(words[0]))
        np.random.seed(int(words[1]))  # noqa: NPY002
        torch.default_generator.manual_seed(int(words[2]))  # the CPU's only: CUDA's belongs to the network
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])  # noqa: NPY002
        torch.set_rng_state(before[2])
