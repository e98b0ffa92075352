"""Training samples for a DataLoader: patches, with or without stored tokens; the index of a sample determines it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from volseg.data.augment import Augmentation
from volseg.data.patches import PatchSource, center_voxel, cut, patch_start, sample_patch
from volseg.data.tokens import TokenVariant
from volseg.errors import DataError
from volseg.planning.plan import Plan


class PatchDataset(Dataset[dict[str, Any]]):
    """Random patches. Sample ``i`` is the same for any number of workers, in any order, and in a resumed run.

    Each pass over the cases uses every case once, in a new random order.

    Args:
        cases: Preprocessed cases.
        plan: Plan.
        augmentation: Augmentation of the patches with their neighbour slices; ``None`` disables it.
        samples: Length: steps times batch size.
        seed: Seed of the run.
        foreground_fraction: Fraction of patches centred on foreground.
        halo: Neighbour slices on each side that the network needs.
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
        """Return sample ``index``.

        Returns:
            ``image`` (C, D + 2 halo, H, W) float32, ``label`` (D, H, W) int64 with -1 ignored, ``case`` its name.
        """
        patch = self.cut(index)
        one = {key: [value] if key == "drawn" else value[None] for key, value in patch.items() if key != "case"}
        return {**{key: value[0] for key, value in self.augmented(one).items()}, "case": patch["case"]}

    def cut(self, index: int) -> dict[str, Any]:
        """Return the patch of sample ``index`` before its augmentation.

        Returns:
            ``image`` (C, D + 2 halo, H, W) float32, ``label`` (D + 2 halo, H, W) as stored, ``case``, and with an
            augmentation ``drawn``, which `augmented` applies.
        """
        if not 0 <= index < self.samples:
            raise IndexError(index)
        case = self.cases[case_index(self.seed, index, len(self.cases))]
        rng = np.random.default_rng([self.seed, index])
        image, label = sample_patch(case, self.plan, rng, self.foreground_fraction, self.halo)
        patch = {"image": torch.from_numpy(image), "label": torch.from_numpy(label), "case": case.id}
        return patch if self.augmentation is None else {**patch, "drawn": self.augmentation.draw(rng)}

    def augmented(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Return a batch of `cut` patches, with ``drawn`` as a list, as a batch of samples, on its device."""
        image, label = batch["image"], batch["label"]
        if self.augmentation is not None:
            image, label = self.augmentation.apply(image, label, batch["drawn"])
        label = label[:, self.halo : self.halo + self.plan.patch_size[0]].long()
        others = {key: value for key, value in batch.items() if key != "drawn"}
        return {**others, "image": image.contiguous(), "label": label}


def case_index(seed: int, index: int, count: int) -> int:
    """Return which of ``count`` cases sample ``index`` uses: each case once per pass, in a new random order."""
    epoch, position = divmod(index, count)
    return int(np.random.default_rng([seed, epoch, count]).permutation(count)[position])


Variants = Sequence[TokenVariant]


class TokenDataset(Dataset[dict[str, Any]]):
    """Random patches with stored tokens. Sample ``i`` is the same for any number of workers and in a resumed run.

    A sample is a variant of a case, one of its in-plane windows, and a range of its slices. Each slice is encoded
    separately, so the range can start anywhere and a flip along depth only reverses the tokens.

    Args:
        cases: The variants of each case.
        plan: Plan.
        samples: Length: steps times batch size.
        seed: Seed of the run.
        foreground_fraction: Fraction of patches around a foreground voxel.
        halo: Neighbour slices on each side that the network needs.
        mirror: Probability of a flip along depth, if the plan allows it.
    """

    def __init__(
        self,
        cases: Sequence[Variants],
        plan: Plan,
        *,
        samples: int,
        seed: int = 0,
        foreground_fraction: float = 0.66,
        halo: int = 0,
        mirror: float = 0.0,
    ) -> None:
        if not cases:
            raise DataError("there is no case to train on")
        self.cases = tuple(tuple(variants) for variants in cases)
        self.plan = plan
        self.samples = samples
        self.seed = seed
        self.foreground_fraction = foreground_fraction
        self.halo = halo
        self.mirror = mirror if 0 in plan.mirror_axes else 0.0

    def __len__(self) -> int:
        return self.samples

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return sample ``index``.

        Returns:
            ``image`` (C, D + 2 halo, H, W) float32, ``label`` (D, H, W) int64 with -1 ignored, ``case`` its name, and
            ``tokens`` (D, F) float16. They stay half precision until the training step, which halves
            the data that workers transfer.
        """
        if not 0 <= index < self.samples:
            raise IndexError(index)
        variants = self.cases[case_index(self.seed, index, len(self.cases))]
        rng = np.random.default_rng([self.seed, index])
        variant = variants[int(rng.integers(len(variants)))]
        window, start = choose_window(variant, self.plan.patch_size, rng, self.foreground_fraction)
        image = cut(variant.image, start, self.plan.patch_size, self.halo)
        label = cut(variant.label, start, self.plan.patch_size)
        tokens = variant.tokens[window, start[0] : start[0] + self.plan.patch_size[0]]
        step = -1 if rng.random() < self.mirror else 1
        return {
            "image": _tensor(image[:, ::step]),
            "label": _tensor(label[::step]).long(),
            "tokens": _tensor(tokens[::step]),
            "case": variant.id,
        }


def choose_window(
    variant: TokenVariant, size: Sequence[int], rng: np.random.Generator, foreground_fraction: float
) -> tuple[int, tuple[int, int, int]]:
    """Draw a window and its slices: around a foreground voxel, or anywhere.

    Returns:
        Number of the in-plane window, the one nearest to being centred on the voxel, and first voxel (d, h, w).
    """
    windows = variant.windows
    center = center_voxel(variant, rng, foreground_fraction)
    start = patch_start(variant.label.shape, size, rng, center)
    if center is None:
        number = int(rng.integers(len(windows)))
    else:
        number = int(np.abs(windows - start[1:]).sum(axis=1).argmin())
    row, column = windows[number].tolist()
    return number, (start[0], row, column)


def _tensor(array: NDArray[Any]) -> Tensor:
    """Return a copy as a tensor: memory maps are read-only, and torch has no negative strides."""
    return torch.from_numpy(array.copy(order="C"))
