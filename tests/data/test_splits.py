from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from volseg.data.splits import choose_shots, make_splits, nnunet_splits
from volseg.errors import ConfigError, DataError

NAMES = [f"case_{number:03d}" for number in range(23)]
names = st.lists(st.text(min_size=1), min_size=5, max_size=40, unique=True)


@given(names, st.integers(0, 1000))
def test_folds_partition_the_cases(ids: list[str], seed: int) -> None:
    splits = make_splits(ids, seed)
    assert len(splits) == 5
    assert sorted(name for split in splits for name in split["val"]) == sorted(ids)
    for split in splits:
        assert sorted(split["train"] + split["val"]) == sorted(ids)
        assert not set(split["train"]) & set(split["val"])
    sizes = [len(split["val"]) for split in splits]
    assert max(sizes) - min(sizes) <= 1


def test_the_order_of_listing_does_not_matter_and_the_seed_does() -> None:
    assert make_splits(NAMES[::-1], 1) == make_splits(NAMES, 1)
    assert make_splits(NAMES, 2) != make_splits(NAMES, 1)


def test_the_split_of_this_version_is_the_split_of_every_version() -> None:
    assert make_splits(["a", "b", "c", "d", "e"], 0)[0]["val"] == ["b"]


def test_few_cases_repeat_folds() -> None:
    splits = make_splits(["a", "b", "c"], 0)
    assert len(splits) == 5
    assert all(len(split["val"]) == 1 and len(split["train"]) == 2 for split in splits)
    assert splits[3] == splits[0]


@pytest.mark.parametrize("ids", [[], ["a"]])
def test_one_case_cannot_be_split(ids: list[str]) -> None:
    with pytest.raises(DataError, match="at least two"):
        make_splits(ids, 0)


def test_equal_names_are_refused() -> None:
    with pytest.raises(DataError, match="found: a"):
        make_splits(["a", "b", "a"], 0)


@given(names, st.integers(0, 1000), st.integers(2, 12))
def test_a_patient_is_held_out_whole_and_once(ids: list[str], seed: int, count: int) -> None:
    patients = {name: f"p{number % count}" for number, name in enumerate(ids)}
    splits = make_splits(ids, seed, patients=patients)
    for split in splits:
        assert sorted(split["train"] + split["val"]) == sorted(ids)
        assert split["train"]
        assert not {patients[name] for name in split["train"]} & {patients[name] for name in split["val"]}
    held_out = [name for split in splits[: len({*patients.values()})] for name in split["val"]]
    assert sorted(held_out) == sorted(ids)
    assert make_splits(ids[::-1], seed, patients=patients) == splits


def test_a_case_each_is_a_split_by_case() -> None:
    assert make_splits(NAMES, 3, patients={name: name for name in NAMES}) == make_splits(NAMES, 3)


def test_one_patient_cannot_be_split() -> None:
    with pytest.raises(DataError, match="different patients"):
        make_splits(["a", "b"], 0, patients={"a": "p", "b": "p"})


@pytest.mark.parametrize(
    ("count", "held_out"),
    [
        (5, [[0], [4], [3], [1], [2]]),
        (7, [[3, 6], [0, 4], [1], [5], [2]]),
        (13, [[0, 7, 9], [3, 6, 10], [8, 11, 12], [1, 4], [2, 5]]),
    ],
)
def test_the_folds_of_nnunet(count: int, held_out: list[list[int]]) -> None:
    """What scikit-learn 1.9.1 gives for ``KFold(5, shuffle=True, random_state=12345)``."""
    names = [f"case_{number:03d}" for number in range(count)]
    splits = nnunet_splits(names[::-1])
    assert [split["val"] for split in splits] == [[names[index] for index in part] for part in held_out]
    assert all(sorted(split["train"] + split["val"]) == names for split in splits)


def test_nnunet_needs_five_cases() -> None:
    with pytest.raises(DataError, match="at least five"):
        nnunet_splits(NAMES[:4])


@given(names, st.integers(0, 5), st.data())
def test_fewer_shots_are_part_of_more(ids: list[str], seed: int, data: st.DataObject) -> None:
    many = data.draw(st.integers(1, len(ids)))
    few = data.draw(st.integers(1, many))
    assert set(choose_shots(ids, few, seed)) <= set(choose_shots(ids[::-1], many, seed)) <= set(ids)
    assert len(choose_shots(ids, few, seed)) == few


def test_no_shots_means_all_cases() -> None:
    assert choose_shots(NAMES[::-1], None, 0) == NAMES


def test_shots_are_not_chosen_as_folds_are() -> None:
    chosen = [choose_shots(NAMES, 5, seed) for seed in range(6)]
    assert len({tuple(shots) for shots in chosen}) == 6


def test_too_many_shots_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"data\.shots"):
        choose_shots(NAMES, 24, 0)
