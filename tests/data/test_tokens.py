from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from tests.made.prepared_cases import made_plan, numbered_case
from volseg.config.schema import AugmentConfig
from volseg.data.augment import Augmentation, build_augmentation
from volseg.data.datasets import TokenDataset, choose_window
from volseg.data.tokens import TokenVariant, cache_tokens, variant_bytes
from volseg.errors import ConfigError, DataError, OutputError
from volseg.geometry.ops import pad_to_size
from volseg.preprocessing.cache import CachedCase
from volseg.preprocessing.preprocess import class_locations

PLAN = made_plan(modality="mri", mirror_axes=(0, 2))
EVERYTHING = AugmentConfig(affine=1, noise=1, blur=1, gamma=1, bias_field=1, mirror=0.5)
ROOMY = 10**9


@dataclass
class BlockMeans:
    """An encoder by hand: per 4x4 block the mean of the slice, of its two neighbours' sum, and their doubles."""

    key: str = "block means"
    window: tuple[int, int, int] = PLAN.patch_size
    halo: int = 1
    slice_shape: tuple[int, int, int, int] = (2, 2, 2, 2)
    calls: list[int] = field(default_factory=list)
    fails_at: int | None = None

    def windows(self, shape: Sequence[int]) -> NDArray[np.int32]:
        last = [shape[axis] - self.window[axis] for axis in (1, 2)]
        return np.array([(row, column) for row in {0, last[0]} for column in {0, last[1]}], dtype=np.int32)

    def encode(self, stack: NDArray[np.float32]) -> NDArray[np.float16]:
        if len(self.calls) == self.fails_at:
            raise KeyboardInterrupt
        self.calls.append(stack.shape[1])
        return block_means(stack)


def block_means(stack: NDArray[np.float32]) -> NDArray[np.float16]:
    image = stack[0]
    channels = np.stack([image[1:-1], image[:-2] + image[2:]], axis=-1)  # (D, H, W, E)
    depth, height, width, _ = channels.shape
    means = channels.reshape(depth, height // 4, 4, width // 4, 4, 2).mean(axis=(2, 4)) / 1000
    return np.stack([means, 2 * means], axis=1).astype(np.float16)  # (D, T, h, w, E)


def on_disk(folder: Path, name: str, shape: tuple[int, int, int] = (6, 12, 10)) -> CachedCase:
    made = numbered_case(shape, name)
    place = folder / "Made" / "plan" / f"{name}-123"
    place.mkdir(parents=True)
    for array in ("image", "label", "locations"):
        np.save(place / f"{array}.npy", getattr(made, array))
    return CachedCase(name, place)


@pytest.fixture
def cases(tmp_path: Path) -> list[CachedCase]:
    return [on_disk(tmp_path, "c0"), on_disk(tmp_path, "small", (3, 12, 6)), on_disk(tmp_path, "c2", (5, 9, 16))]


def augmentation(**changes: Any) -> Augmentation:
    return replace(build_augmentation(PLAN, EVERYTHING), mirror_axes=(2,), **changes)


def build(cases: Sequence[CachedCase], encoder: BlockMeans | None = None, **changes: Any) -> list[Any]:
    values: dict[str, Any] = {"variants": 3, "seed": 5, "limit_bytes": ROOMY}
    return cache_tokens(cases, encoder or BlockMeans(), augmentation(), **values | changes)


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and "tokens" in path.parts)


def test_the_plain_variant_is_the_padded_case_and_all_its_windows(cases: list[CachedCase]) -> None:
    for case, variants in zip(cases, build(cases, variants=1), strict=True):
        (plain,) = variants
        image, _ = pad_to_size(case.image, PLAN.patch_size)
        np.testing.assert_array_equal(plain.image, image)
        np.testing.assert_array_equal(plain.label, pad_to_size(case.label, PLAN.patch_size)[0])
        np.testing.assert_array_equal(plain.locations, class_locations(plain.label))
        assert plain.tokens.dtype == np.float16
        assert plain.tokens.shape == (len(plain.windows), image.shape[1], 2, 2, 2, 2)
        with_halo = np.pad(image, [(0, 0), (1, 1), (0, 0), (0, 0)], mode="edge")
        for tokens, (row, column) in zip(plain.tokens, plain.windows, strict=True):
            np.testing.assert_array_equal(tokens, block_means(with_halo[:, :, row : row + 8, column : column + 8]))


def test_the_other_variants_are_augmented_volumes_with_their_own_tokens(cases: list[CachedCase]) -> None:
    plain, *others = build(cases)[0]
    for variant in others:
        assert variant.image.shape == plain.image.shape
        assert not np.array_equal(variant.image, plain.image)
        np.testing.assert_array_equal(variant.locations, class_locations(variant.label))
        stack = np.pad(variant.image, [(0, 0), (1, 1), (0, 0), (0, 0)], mode="edge")[:, :, :8, :8]
        origin = variant.windows.tolist().index([0, 0])
        np.testing.assert_array_equal(variant.tokens[origin], block_means(stack))
    assert not np.array_equal(others[0].image, others[1].image)


def test_image_and_label_are_augmented_alike(tmp_path: Path) -> None:
    case = on_disk(tmp_path, "c")
    np.save(case.folder / "image.npy", case.label[None].astype(np.float32))
    flips = Augmentation(AugmentConfig(affine=0, noise=0, blur=0, gamma=0, mirror=1), (1, 1, 1), (1,), False, False)
    (stored,) = cache_tokens([case], BlockMeans(), flips, variants=2, seed=0, limit_bytes=ROOMY)
    np.testing.assert_array_equal(stored[1].label, case.label[:, ::-1])
    np.testing.assert_array_equal(stored[1].image[0], stored[1].label)


def test_seed_name_and_number_alone_decide_a_variant(cases: list[CachedCase], tmp_path: Path) -> None:
    first = build(cases)
    twin = on_disk(tmp_path / "elsewhere", "c2", (5, 9, 16))
    again = build([twin], variants=4)[0]
    for stored, rebuilt in zip(first[2], again[:3], strict=True):
        assert stored.folder != rebuilt.folder
        np.testing.assert_array_equal(stored.image, rebuilt.image)
        np.testing.assert_array_equal(stored.tokens, rebuilt.tokens)
    other = on_disk(tmp_path, "other", (5, 9, 16))
    assert not np.array_equal(build([other])[0][1].image, first[2][1].image)


def test_another_encoder_seed_or_augmentation_never_reads_stale_tokens(cases: list[CachedCase]) -> None:
    first, more = build(cases[:1])[0], build(cases[:1], variants=5)[0]
    assert more[:3] == first
    new_seed = build(cases[:1], seed=6)[0]
    assert new_seed[0] == first[0]  # the plain variant has nothing to do with chance
    assert not {variant.folder for variant in new_seed[1:]} & {variant.folder for variant in more}
    assert not np.array_equal(new_seed[1].image, first[1].image)
    changed = cache_tokens(
        cases[:1], BlockMeans(), augmentation(in_plane_only=True), variants=2, seed=5, limit_bytes=ROOMY
    )[0]
    assert (changed[0] == first[0], changed[1] == first[1]) == (True, False)
    other = build(cases[:1], BlockMeans(key="other weights"))[0]
    assert not {variant.folder for variant in other} & {variant.folder for variant in first}


def test_a_second_time_nothing_is_encoded(cases: list[CachedCase]) -> None:
    told: list[tuple[int, int]] = []
    first, encoder = build(cases), BlockMeans()
    assert build(cases, encoder, limit_bytes=1, progress=lambda *at: told.append(at)) == first
    assert encoder.calls == []
    assert told == [(1, 3), (2, 3), (3, 3)]


def test_an_interrupted_build_goes_on_with_what_is_missing(cases: list[CachedCase], tmp_path: Path) -> None:
    whole = BlockMeans()
    expected = build(cases, replace(whole, key="whole"))
    windows = [len(whole.windows(variants[0].label.shape)) for variants in expected]
    stopped = BlockMeans(fails_at=windows[0] * 3 + windows[1] + 1)  # in the second variant of the second case
    with pytest.raises(KeyboardInterrupt):
        build(cases, stopped)
    assert list(tmp_path.rglob("*.tmp")) == []
    encoder = BlockMeans()
    found = build(cases, encoder)
    assert len(encoder.calls) == windows[1] * 2 + windows[2] * 3
    for one, other in zip(found, expected, strict=True):
        for a, b in zip(one, other, strict=True):
            np.testing.assert_array_equal(a.tokens, b.tokens)


def test_the_estimate_is_what_lies_on_disk(cases: list[CachedCase]) -> None:
    for case, (plain,) in zip(cases, build(cases, variants=1), strict=True):
        names = ("image", "label", "locations", "tokens")
        assert variant_bytes(case, BlockMeans()) == sum(getattr(plain, name).nbytes for name in names)
        assert (plain.folder / "tokens.npy").stat().st_size == plain.tokens.nbytes + 128  # the header


def test_too_large_a_cache_is_refused_before_anything_is_written(cases: list[CachedCase], tmp_path: Path) -> None:
    sizes = [variant_bytes(case, BlockMeans()) for case in cases]
    needed = 3 * sum(sizes)
    with pytest.raises(ConfigError) as caught:
        build(cases, limit_bytes=needed - 1)
    message = str(caught.value)
    for part in ("data.cache_limit", "3 cases x 3 variants", "at most", "data.token_variants=2", "plan.token_stride"):
        assert part in message
    assert f"found: {needed / 1000:.3g} KB = " in message
    assert f"{sum(sizes) / 3000:.3g} KB on average" in message
    assert f"largest case {cases[np.argmax(sizes)].id}: {max(sizes) / 1000:.3g} KB" in message
    assert files(tmp_path) == []
    with pytest.raises(ConfigError, match=r"data\.shots"):
        build(cases, limit_bytes=needed // 3 - 1)
    assert len(build(cases, limit_bytes=needed)) == 3


def test_a_full_disk_leaves_nothing_behind(
    cases: list[CachedCase], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np.lib.format, "write_array_header_1_0", full)
    with pytest.raises(OutputError, match=r"No space left(.|\n)*data\.cache"):
        build(cases)
    assert files(tmp_path) == []
    assert list(tmp_path.rglob("*.tmp")) == []


def test_a_file_that_is_damaged_during_a_run_is_named(cases: list[CachedCase]) -> None:
    variant = build(cases)[0][0]
    (variant.folder / "tokens.npy").write_bytes(b"")
    with pytest.raises(DataError, match=r"tokens\.npy(.|\n)*made anew"):
        _ = variant.tokens


def flip_one_bit(path: Path) -> None:
    changed = bytearray(path.read_bytes())
    changed[-20] ^= 4
    path.write_bytes(changed)


@pytest.mark.parametrize("name", ["image.npy", "windows.npy", "tokens.npy", "meta.json"])
@pytest.mark.parametrize(
    "damage",
    [flip_one_bit, lambda path: path.write_bytes(path.read_bytes()[:-1]), lambda path: path.unlink()],
    ids=["flipped", "cut off", "missing"],
)
def test_a_damaged_variant_is_made_anew_with_a_notice(
    cases: list[CachedCase], damage: Callable[[Path], object], name: str, caplog: pytest.LogCaptureFixture
) -> None:
    stored = build(cases)
    variant = stored[1][2]
    whole = {path.name: path.read_bytes() for path in variant.folder.iterdir()}
    assert whole.keys() == {*variant.files, "meta.json"}
    damage(variant.folder / name)
    encoder = BlockMeans()
    assert build(cases, encoder) == stored
    assert {path.name: path.read_bytes() for path in variant.folder.iterdir()} == whole
    assert len(encoder.calls) == len(variant.windows)
    assert f"file: {variant.folder / name}" in caplog.text


def dataset(stored: list[tuple[TokenVariant, ...]], **changes: Any) -> TokenDataset:
    values: dict[str, Any] = {"samples": 60, "seed": 3, "halo": 1, "mirror": 0.5}
    return TokenDataset(stored, PLAN, **values | changes)


def test_a_sample_carries_the_tokens_of_its_own_slices(cases: list[CachedCase]) -> None:
    made = dataset(build(cases))
    flipped = dataset(made.cases, mirror=1.0)
    for index in range(60):
        sample = made[index]
        assert (sample["image"].shape, sample["image"].dtype) == ((1, 6, 8, 8), torch.float32)
        assert (sample["label"].shape, sample["label"].dtype) == ((4, 8, 8), torch.int64)
        assert (sample["tokens"].shape, sample["tokens"].dtype) == ((4, 2, 2, 2, 2), torch.float16)
        assert all(sample[name].is_contiguous() for name in ("image", "label", "tokens"))
        np.testing.assert_array_equal(sample["tokens"], block_means(sample["image"].numpy()))
        np.testing.assert_array_equal(flipped[index]["tokens"], block_means(flipped[index]["image"].numpy()))


def test_depth_is_flipped_as_often_as_asked_and_only_where_allowed(cases: list[CachedCase]) -> None:
    stored = build(cases[:1], variants=1)
    straight, flipped = dataset(stored, mirror=0.0), dataset(stored, mirror=1.0)
    forbidden = TokenDataset(stored, made_plan(mirror_axes=(2,)), samples=60, seed=3, halo=1, mirror=1.0)
    for index in range(12):
        assert torch.equal(flipped[index]["image"], straight[index]["image"].flip(1))
        assert torch.equal(flipped[index]["label"], straight[index]["label"].flip(0))
        assert torch.equal(forbidden[index]["image"], straight[index]["image"])
    half = dataset(stored, mirror=0.5)
    turned = [torch.equal(half[index]["image"], flipped[index]["image"]) for index in range(60)]
    assert 15 < sum(turned) < 45


def test_image_and_label_lie_on_each_other(cases: list[CachedCase]) -> None:
    made = dataset(build(cases[:1], variants=1))
    lookup = torch.from_numpy(np.concatenate([[0], cases[0].label.ravel()])).long()
    for index in range(30):
        sample = made[index]
        assert torch.equal(lookup[sample["image"][0, 1:-1].long()], sample["label"])


def test_workers_and_other_generators_do_not_matter(cases: list[CachedCase]) -> None:
    made = dataset(build(cases), samples=12)

    def run(workers: int) -> list[dict[str, Any]]:
        torch.manual_seed(workers)
        context = "fork" if workers else None
        return list(DataLoader(made, batch_size=2, num_workers=workers, multiprocessing_context=context))

    for alone, shared in zip(run(0), run(2), strict=True):
        assert alone["case"] == shared["case"]
        assert all(torch.equal(alone[name], shared[name]) for name in ("image", "label", "tokens"))
    assert not torch.equal(made[0]["image"], dataset(made.cases, seed=4)[0]["image"])


def test_every_case_comes_once_a_turn_and_every_variant_and_window_is_met(cases: list[CachedCase]) -> None:
    stored = build(cases)
    made = dataset(stored, samples=300)
    assert all(len({made[3 * turn + place]["case"] for place in range(3)}) == 3 for turn in range(5))
    rng = np.random.default_rng(0)
    numbers = Counter(choose_window(stored[0][0], PLAN.patch_size, rng, 0.0)[0] for _ in range(200))
    assert set(numbers) == {0, 1, 2, 3}
    assert min(numbers.values()) > 25
    seen = {sample["image"].numpy().tobytes() for sample in (dataset(stored[:1], mirror=0)[i] for i in range(60))}
    assert len(seen) > 20


def test_foreground_is_met_through_the_window_nearest_to_it(cases: list[CachedCase]) -> None:
    variant = build(cases[:1], variants=1)[0][0]  # its one voxel of class 2 is the last, so the last window has it
    rng = np.random.default_rng(0)
    drawn = [choose_window(variant, PLAN.patch_size, rng, 1.0) for _ in range(200)]
    assert all(variant.windows[number].tolist() == list(start[1:]) for number, start in drawn)
    rare = sum(start == (2, 4, 2) for _, start in drawn)
    assert 60 < rare < 160  # half the draws ask for class 2
    met = [(dataset([(variant,)], foreground_fraction=1.0)[index]["label"] > 0).any() for index in range(60)]
    assert all(met)


def test_no_case_and_no_such_sample_are_errors(cases: list[CachedCase]) -> None:
    with pytest.raises(DataError):
        TokenDataset([], PLAN, samples=1)
    with pytest.raises(IndexError):
        _ = dataset(build(cases[:1], variants=1))[60]
