from __future__ import annotations

import json
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
from volseg.planning.channel import ChannelIntensity
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
def test_other_contents_are_preprocessed_anew_under_the_old_date_and_size(
    cases: list[Case], tmp_path: Path, which: str
) -> None:
    before = cache_dataset(cases, made_plan(), tmp_path)
    path = cases[0].images[0] if which == "image" else cases[0].label
    assert path is not None
    content, stamp = bytearray(path.read_bytes()), path.stat().st_mtime_ns
    content[4] ^= 1  # a date in the header of gzip, so that the file stays readable
    path.write_bytes(content)
    os.utime(path, ns=(stamp, stamp))
    identity = input_identity(cases[0])
    assert identity[f"{which}_sha256"] != before[0].meta["inputs"][f"{which}_sha256"]
    assert sum(identity[key] != before[0].meta["inputs"][key] for key in identity) == 1
    after = cache_dataset(cases, made_plan(), tmp_path)
    assert (after[0] != before[0], after[1] == before[1]) == (True, True)
    assert data_hash(after) != data_hash(before)


def test_moved_and_touched_data_is_found_again(
    cases: list[Case], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = cache_dataset(cases, made_plan(), tmp_path / "cache")
    (tmp_path / "data").rename(tmp_path / "moved")
    moved = []
    for case in cases:
        assert case.label is not None
        images, label = (
            [tmp_path / "moved" / path.relative_to(tmp_path / "data") for path in paths]
            for paths in (case.images, [case.label])
        )
        os.utime(images[0], (0, 0))
        moved.append(replace(case, images=tuple(images), label=label[0]))
    monkeypatch.setattr(cache, "preprocess_case", None)
    assert cache_dataset(moved, made_plan(), tmp_path / "cache") == before


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

    monkeypatch.setattr(cache, "write_array", full)
    with pytest.raises(OutputError, match="No space left"):
        cache_dataset(cases, made_plan(), tmp_path / "cache")
    assert [path for path in (tmp_path / "cache").rglob("*") if path.is_file() or path.name.endswith("tmp")] == []


def test_a_case_that_another_process_writes_meanwhile_is_taken_from_it(
    cases: list[Case], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other process finishes between the first look and the lock; nothing is preprocessed twice."""
    calls: list[str] = []
    original, locked = cache.preprocess_case, cache.atomic_folder

    def preprocess(case: Case, plan: Any) -> Any:
        calls.append(case.id)
        return original(case, plan)

    def overtaken(*arguments: Any, **settings: Any) -> Any:
        monkeypatch.setattr(cache, "atomic_folder", locked)
        cache_dataset(cases[:1], made_plan(), tmp_path)
        return locked(*arguments, **settings)

    monkeypatch.setattr(cache, "preprocess_case", preprocess)
    monkeypatch.setattr(cache, "atomic_folder", overtaken)
    cached = cache_dataset(cases[:1], made_plan(), tmp_path)[0]
    assert calls == ["c0"]
    assert cached.image.shape == (1, *cached.grid.shape)
    assert {path.name for path in cached.folder.iterdir()} == {*cached.files, "meta.json"}
    assert [path for path in cached.folder.parent.iterdir() if path != cached.folder] == []


def test_bad_cases_are_named_and_good_ones_kept(cases: list[Case], tmp_path: Path) -> None:
    cases[1].images[0].unlink()
    with pytest.raises(DataError, match=r"1 of 2 cases(.|\n)*- c1: ") as caught:
        cache_dataset(cases, made_plan(), tmp_path / "cache")
    assert str(cases[1].images[0]) in str(caught.value)
    assert len(list((tmp_path / "cache").rglob("image.npy"))) == 1


def test_a_file_that_is_damaged_during_a_run_is_named(cases: list[Case], tmp_path: Path) -> None:
    cached = cache_dataset(cases, made_plan(), tmp_path)[0]
    (cached.folder / "image.npy").write_bytes(b"")
    with pytest.raises(DataError, match=r"image\.npy(.|\n)*made anew"):
        _ = cached.image


def contents(case: cache.CachedCase) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in case.folder.iterdir()}


@pytest.mark.parametrize("name", ["image.npy", "label.npy", "locations.npy", "meta.json"])
@pytest.mark.parametrize(
    "damage",
    [lambda whole: whole[:-1], lambda whole: b"", lambda whole: whole + b"\0", lambda _: None],
    ids=["cut off", "empty", "longer", "missing"],
)
def test_a_damaged_case_is_made_anew_with_a_notice(
    cases: list[Case], tmp_path: Path, name: str, damage: Any, caplog: pytest.LogCaptureFixture
) -> None:
    first, other = cache_dataset(cases, made_plan(), tmp_path)
    whole, changed = contents(first), damage((first.folder / name).read_bytes())
    (first.folder / name).unlink() if changed is None else (first.folder / name).write_bytes(changed)
    assert cache_dataset(cases, made_plan(), tmp_path) == [first, other]
    assert contents(first) == whole
    assert "1 damaged or outdated cases of the cache are made anew" in caplog.text
    assert f"file: {first.folder / name}" in caplog.text
    caplog.clear()
    cache_dataset(cases, made_plan(), tmp_path)
    assert caplog.text == ""


def test_every_flipped_bit_of_a_cached_case_is_noticed(cases: list[Case], tmp_path: Path) -> None:
    case = cache_dataset(cases, made_plan(), tmp_path)[0]
    rng = np.random.default_rng(0)
    for name in (*case.files, "meta.json"):
        path = case.folder / name
        whole = path.read_bytes()
        for bit in rng.choice(8 * len(whole), 100, replace=False).tolist():
            changed = bytearray(whole)
            changed[bit // 8] ^= 1 << bit % 8
            path.write_bytes(changed)
            same_value = name == "meta.json" and _plain(changed) == _plain(whole)  # 0.1 and the next decimal text
            assert same_value or cache.damage_of(case) is not None, (name, bit)
        path.write_bytes(whole)
        assert cache.damage_of(case) is None


def _plain(text: bytes) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None


def test_a_case_without_checksums_of_an_earlier_version_is_made_anew(
    cases: list[Case], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    case = cache_dataset(cases, made_plan(), tmp_path)[0]
    whole, meta = contents(case), json.loads((case.folder / "meta.json").read_text())
    (case.folder / "meta.json").write_text(json.dumps({key: meta[key] for key in ("case", "inputs", "trace")}))
    cache_dataset(cases, made_plan(), tmp_path)
    assert contents(case) == whole
    assert "has no checksums" in caplog.text


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
