from __future__ import annotations

import os
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.made.allocations import little_memory
from tests.made.prepared_cases import CT, made_plan, write_case
from volseg.errors import DataError, OutputError
from volseg.io.datasets import Case
from volseg.planning.plan import ChannelIntensity
from volseg.preprocessing import cache
from volseg.preprocessing.cache import cache_dataset, data_hash, input_identity, plan_key
from volseg.preprocessing.preprocess import preprocess_case


@pytest.fixture
def cases(tmp_path: Path) -> list[Case]:
    rng = np.random.default_rng(0)
    label = np.zeros((9, 8, 6), dtype=np.uint8)
    label[2:5, 2:5, 2:5] = 1
    images = [rng.normal(0, 100, (9, 8, 6)).astype(np.float32) for _ in range(2)]
    return [write_case(tmp_path / "data", f"c{number}", image, label) for number, image in enumerate(images)]


def test_cached_is_preprocessed(cases: list[Case], tmp_path: Path) -> None:
    for case, cached in zip(cases, cache_dataset(cases, made_plan(), tmp_path / "cache"), strict=True):
        prepared = preprocess_case(case, made_plan())
        assert cached.id == prepared.id == case.id
        np.testing.assert_array_equal(cached.image, prepared.image)
        np.testing.assert_array_equal(cached.label, prepared.label)
        np.testing.assert_array_equal(cached.locations, prepared.locations)
        assert cached.trace == prepared.trace
        assert cached.grid == prepared.grid
        assert (cached.image.dtype, cached.label.dtype) == (np.float32, np.int8)


def test_it_is_memory_mapped_and_read_only(cases: list[Case], tmp_path: Path) -> None:
    cached = pickle.loads(pickle.dumps(cache_dataset(cases, made_plan(), tmp_path)[0]))
    assert isinstance(cached.image.base, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        cached.image[0, 0, 0, 0] = 1


def test_a_second_time_nothing_is_preprocessed(
    cases: list[Case], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = cache_dataset(cases, made_plan(), tmp_path)
    monkeypatch.setattr(cache, "preprocess_case", None)
    told: list[tuple[int, int]] = []
    assert cache_dataset(cases, made_plan(), tmp_path, lambda *at: told.append(at)) == first
    assert told == [(1, 2), (2, 2)]


RELEVANT: list[dict[str, Any]] = [
    {"spacing_mm": (2.0, 1.0, 1.001)},
    {"slice_axis": "A"},
    {"labels": {"background": 0, "organ": 1, "lesion": 4}},
    {"ignore_label": 255},
    {"crop_nonzero": True},
    {"intensity": (replace(CT, mean=50.5),)},
    {"intensity": (ChannelIntensity(rule="zscore"),)},
    {"intensity": (ChannelIntensity(rule="zscore", nonzero=True),)},
    {"channels": ("PET",)},
]
IRRELEVANT: list[dict[str, Any]] = [
    {"patch_size": (8, 8, 8)},
    {"mirror_axes": (0, 1)},
    {"decoder_strides": ((1, 1, 1), (2, 2, 2), (2, 4, 4))},
    {"nearest_depth": True},
    {"rotate_in_plane_only": True},
]


def test_every_field_of_the_plan_that_matters_changes_the_key() -> None:
    keys = {plan_key(made_plan(**change)) for change in [{}, *RELEVANT]}
    assert len(keys) == 1 + len(RELEVANT)
    assert set(cache.PLAN_FIELDS) == {key for change in RELEVANT for key in change}


@pytest.mark.parametrize("change", IRRELEVANT)
def test_fields_that_only_training_reads_do_not(change: dict[str, Any]) -> None:
    assert plan_key(made_plan(**change)) == plan_key(made_plan())


def test_a_new_code_version_changes_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    before = plan_key(made_plan())
    monkeypatch.setattr(cache, "CODE_VERSION", cache.CODE_VERSION + 1)
    assert plan_key(made_plan()) != before


def test_a_changed_plan_never_reads_a_stale_case(cases: list[Case], tmp_path: Path) -> None:
    before = cache_dataset(cases, made_plan(), tmp_path)
    after = cache_dataset(cases, made_plan(intensity=(replace(CT, mean=0.0),)), tmp_path)
    np.testing.assert_allclose(after[0].image - before[0].image, 2.0, atol=1e-5)
    assert data_hash(before) != data_hash(after)


@pytest.mark.parametrize("which", ["image", "label"])
def test_a_touched_file_is_preprocessed_anew(cases: list[Case], tmp_path: Path, which: str) -> None:
    before = cache_dataset(cases, made_plan(), tmp_path)
    path = cases[0].images[0] if which == "image" else cases[0].label
    assert path is not None
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))
    after = cache_dataset(cases, made_plan(), tmp_path)
    assert after[0] != before[0]
    assert after[1] == before[1]


def test_other_contents_under_the_old_date_and_size_are_noticed(cases: list[Case]) -> None:
    path = cases[0].images[0]
    before, stamp = input_identity(cases[0]), path.stat().st_mtime_ns
    content = bytearray(path.read_bytes())
    content[100] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(stamp, stamp))
    assert input_identity(cases[0]) != before


def test_the_order_of_cases_does_not_change_the_data_hash(cases: list[Case], tmp_path: Path) -> None:
    cached = cache_dataset(cases, made_plan(), tmp_path)
    assert data_hash(cached) == data_hash(cached[::-1])
    assert data_hash(cached) != data_hash(cached[:1])


def test_an_interrupted_write_leaves_nothing(
    cases: list[Case], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, *_: Any, **__: Any) -> None:
        if path.name == "label.npy":
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "save", full)
    with pytest.raises(OutputError, match="No space left"):
        cache_dataset(cases, made_plan(), tmp_path / "cache")
    assert [path for path in (tmp_path / "cache").rglob("*") if path.is_file() or path.name.endswith("tmp")] == []


def test_two_writers_of_the_same_case_do_not_disturb_each_other(
    cases: list[Case], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = cache.preprocess_case

    def overtaken(case: Case, plan: Any) -> Any:
        monkeypatch.setattr(cache, "preprocess_case", original)
        cache_dataset([case], plan, tmp_path)  # the other one is done first
        return original(case, plan)

    monkeypatch.setattr(cache, "preprocess_case", overtaken)
    cached = cache_dataset(cases[:1], made_plan(), tmp_path)[0]
    assert cached.image.shape == (1, *cached.grid.shape)
    assert list(tmp_path.rglob("*.tmp")) == []


def test_bad_cases_are_named_and_good_ones_kept(cases: list[Case], tmp_path: Path) -> None:
    cases[1].images[0].unlink()
    with pytest.raises(DataError, match=r"1 of 2 cases(.|\n)*- c1: ") as caught:
        cache_dataset(cases, made_plan(), tmp_path / "cache")
    assert str(cases[1].images[0]) in str(caught.value)
    assert len(list((tmp_path / "cache").rglob("image.npy"))) == 1


def test_a_damaged_cache_says_what_to_do(cases: list[Case], tmp_path: Path) -> None:
    cached = cache_dataset(cases, made_plan(), tmp_path)[0]
    (cached.folder / "image.npy").write_bytes(b"")
    with pytest.raises(DataError, match="delete its folder"):
        _ = cached.image


def test_names_that_are_no_folders_are_made_safe(cases: list[Case], tmp_path: Path) -> None:
    strange = replace(cases[0], id="a/b c:é")
    cached = cache_dataset([strange], made_plan(dataset="../up"), tmp_path / "cache")[0]
    assert cached.id == "a/b c:é"
    assert (tmp_path / "cache") in cached.folder.resolve().parents


def test_an_array_that_claims_more_than_its_file_holds(cases: list[Case], tmp_path: Path) -> None:
    cached = cache_dataset(cases, made_plan(), tmp_path / "cache")[0]
    file = cached.folder / "image.npy"
    for shape in ((1, 40, 10**6, 10**6), (1, 2**62, 2**62, 2**62)):
        with file.open("wb") as stream:
            np.lib.format.write_array_header_1_0(stream, {"descr": "<f4", "fortran_order": False, "shape": shape})
            stream.write(bytes(100))
        with little_memory(), pytest.raises(DataError, match=r"image\.npy"):
            _ = cached.image
