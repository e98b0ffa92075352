"""Token cache: tokens of a frozen encoder on disk, with the augmented volumes that they belong to.

A case has several variants: the first is the case itself, the others are augmented as a whole. Each variant is written
atomically; every run compares the files with their checksums once. Layout, beside the preprocessed cases of the plan:
``tokens/<token key>/<case>-<input key>/<plain or augmentation key-number>/{image,label,locations,windows,tokens}.npy``,
with a ``meta.json``.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from volseg.config.sizes import format_size
from volseg.data.augment import Augmentation
from volseg.data.patches import cut
from volseg.errors import ConfigError, DataError, counted
from volseg.geometry.ops import pad_to_size
from volseg.io.array_folder import FileEntry, array_file, as_bytes, open_array, write_array, write_description
from volseg.io.atomic import atomic_folder
from volseg.parallel import Progress
from volseg.preprocessing.cache import CachedCase, StoredCase, damage_of, digest, log_damage
from volseg.preprocessing.preprocess import class_locations

CODE_VERSION = 3
"""Increased whenever the same case and settings give other files."""
HALF = np.dtype("<f2")
CHECK_THREADS = 4
"""Reading and checksums release the interpreter lock."""


class SliceTokens(Protocol):
    """An encoder as the cache needs it."""

    @property
    def key(self) -> str:
        """Hash of the weights and of every setting that tokens or windows depend on."""

    @property
    def window(self) -> tuple[int, int, int]:
        """The plan's patch (D, H, W): smallest volume, and in-plane size of a window."""

    @property
    def halo(self) -> int:
        """Neighbour slices on each side that the tokens of a slice depend on."""

    @property
    def slice_shape(self) -> tuple[int, ...]:
        """Shape of the tokens of one slice of a window."""

    def windows(self, shape: Sequence[int]) -> NDArray[np.int32]:
        """Return the first row and column (N, 2) of the in-plane windows of a padded volume (D, H, W)."""

    def encode(self, stack: NDArray[np.float32]) -> NDArray[np.float16]:
        """Encode the slices of one window: (C, D + 2 halo, H, W) -> tokens (D, *slice_shape)."""


@dataclass(frozen=True)
class TokenVariant(StoredCase):
    """A variant of a case: augmented, at least as large as a patch, with its tokens."""

    files: ClassVar[tuple[str, ...]] = (*StoredCase.files, "windows.npy", "tokens.npy")

    @property
    def windows(self) -> NDArray[np.int32]:
        """(N, 2): first row and column of each in-plane window."""
        return open_array(self.folder / "windows.npy")

    @property
    def tokens(self) -> NDArray[np.float16]:
        """(N, D, *slice_shape): the tokens of each slice of each window. A range of slices is contiguous."""
        return open_array(self.folder / "tokens.npy")


def cache_tokens(
    cases: Sequence[CachedCase],
    encoder: SliceTokens,
    augmentation: Augmentation,
    *,
    variants: int,
    seed: int,
    limit_bytes: int,
    region_indices: Sequence[Sequence[int]] = (),
    progress: Progress | None = None,
) -> list[tuple[TokenVariant, ...]]:
    """Write the variants that are not in the cache yet, or damaged there.

    Args:
        cases: Preprocessed cases.
        encoder: Computes the tokens.
        augmentation: Applied to whole volumes, for all variants but the first.
        variants: Variants per case, the plain one included.
        seed: Determines the augmentation, with the case's name and the number of the variant.
        limit_bytes: Largest total size.
        region_indices: Class indices of each region of the plan.
        progress: Called after every case with (done, in all).

    Returns:
        The variants of each case, plain first.

    Raises:
        ConfigError: The cache would exceed the limit; nothing is written.
        OutputError: The cache folder cannot be written to.
    """
    key = digest({"augmentation": asdict(augmentation), "seed": seed})[:12]
    names = ["plain", *(f"{key}-{number:03d}" for number in range(1, variants))]
    stored = [tuple(TokenVariant(case.id, _folder(case, encoder) / name) for name in names) for case in cases]
    damaged = damaged_variants([variant for row in stored for variant in row if variant.folder.is_dir()])
    log_damage(list(damaged.values()))

    def is_missing(variant: TokenVariant) -> bool:
        return variant.folder in damaged or not variant.folder.is_dir()

    if any(is_missing(variant) for row in stored for variant in row):
        check_size(cases, encoder, variants, limit_bytes)
    for done, (case, row) in enumerate(zip(cases, stored, strict=True), start=1):
        for number, variant in enumerate(row):
            if is_missing(variant):
                volume = _variant(case, encoder, augmentation, seed, number)
                _write(variant, encoder, *volume, region_indices, replace=variant.folder in damaged)
        if progress is not None:
            progress(done, len(cases))
    return stored


def damaged_variants(variants: Sequence[TokenVariant]) -> dict[Path, DataError]:
    """Read the files of stored variants once, in several threads, and return folder -> damage."""
    with ThreadPoolExecutor(CHECK_THREADS) as pool:
        damages = pool.map(damage_of, variants)
        found = {variant.folder: damage for variant, damage in zip(variants, damages, strict=True)}
    return {folder: damage for folder, damage in found.items() if damage is not None}


def variant_bytes(case: CachedCase, encoder: SliceTokens) -> int:
    """Estimate the bytes of one variant of a case; headers and augmented foreground are not counted."""
    shape = [max(size, least) for size, least in zip(case.label.shape, encoder.window, strict=True)]
    tokens = len(encoder.windows(shape)) * shape[0] * math.prod(encoder.slice_shape) * HALF.itemsize
    voxel = case.image.shape[0] * case.image.itemsize + case.label.itemsize
    return int(tokens + math.prod(shape) * voxel + case.locations.nbytes)


def check_size(cases: Sequence[CachedCase], encoder: SliceTokens, variants: int, limit_bytes: int) -> None:
    """Check the size of the cache before it is written.

    Raises:
        ConfigError: The estimate exceeds the limit; the hint lists settings that reduce it.
    """
    sizes = {case.id: variant_bytes(case, encoder) for case in cases}
    one = sum(sizes.values())
    if one * variants <= limit_bytes:
        return
    largest = max(sizes, key=sizes.__getitem__)
    fitting = limit_bytes // one
    hints = [f"data.cache_limit={math.ceil(one * variants / 1e9)}GB, if the disk has the room"]
    hints += [f"data.token_variants={fitting}"] if fitting else ["data.shots for fewer cases"]
    hints += ["a larger plan.token_stride", "a narrower model.encoder", "data.cache_tokens=false"]
    raise ConfigError(
        "the token cache would be larger than data.cache_limit",
        found=f"{format_size(one * variants)} = {counted(len(cases), 'case')} x {counted(variants, 'variant')}"
        " (data.token_variants)"
        f" x {format_size(one / len(cases))} on average; largest case {largest}: {format_size(sizes[largest])} each",
        expected=f"at most {format_size(limit_bytes)}",
        hint="set one of: " + "; ".join(hints),
    )


def _folder(case: CachedCase, encoder: SliceTokens) -> Path:
    key = digest({"code": CODE_VERSION, "encoder": encoder.key})[:12]
    return case.folder.parent / "tokens" / key / case.folder.name


def _variant(
    case: CachedCase, encoder: SliceTokens, augmentation: Augmentation, seed: int, number: int
) -> tuple[NDArray[np.float32], NDArray[Any]]:
    """Return image (C, D, H, W) and label (D, H, W), padded to the patch as in prediction, then augmented."""
    image, label = (np.array(pad_to_size(array, encoder.window)[0]) for array in (case.image, case.label))
    if number == 0:
        return image, label
    case_number = int(hashlib.sha256(case.id.encode()).hexdigest()[:15], 16)
    drawn = augmentation.draw(np.random.default_rng([seed, case_number, number]))
    images, labels = augmentation.apply(torch.from_numpy(image)[None], torch.from_numpy(label)[None], [drawn])
    return images[0].contiguous().numpy(), labels[0].contiguous().numpy()


def _write(
    variant: TokenVariant,
    encoder: SliceTokens,
    image: NDArray[np.float32],
    label: NDArray[Any],
    region_indices: Sequence[Sequence[int]],
    *,
    replace: bool,
) -> None:
    windows = encoder.windows(label.shape)
    arrays = {"image": image, "label": label, "locations": class_locations(label, region_indices), "windows": windows}
    size = (label.shape[0], *encoder.window[1:])
    shape = (len(windows), label.shape[0], *encoder.slice_shape)
    hint = "set data.cache to a folder with room that you may write to"
    with atomic_folder(variant.folder, replace=replace, hint=hint) as folder:
        if not replace and variant.folder.is_dir():
            return  # another process has written it while this one waited
        entries: dict[str, FileEntry] = {}
        for name, array in arrays.items():
            write_array(folder / f"{name}.npy", array, entries)
        # Window by window: the tokens of a large case may not fit in memory.
        with array_file(folder / "tokens.npy", HALF, shape, entries) as file:
            for row, column in windows.tolist():
                tokens = encoder.encode(cut(image, (0, row, column), size, encoder.halo))
                assert tokens.shape == shape[1:], (tokens.shape, shape)
                file.write(as_bytes(tokens.astype(HALF, copy=False)))
        write_description(folder, {"case": variant.id}, entries)
