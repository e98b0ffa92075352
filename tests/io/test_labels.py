from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from volseg.errors import DataError
from volseg.io.description import read_label_map
from volseg.io.labels import (
    LabelMap,
    check_agreement,
    check_segment_names,
    check_trainable,
    make_label_map,
    plain_name,
    value_counts,
)


def test_both_ways_to_write_labels(tmp_path: Path) -> None:
    file = tmp_path / "dataset.json"
    file.write_text(json.dumps({"labels": {"0": "background", "1": "liver", "2": "left kidney"}}))
    decathlon = read_label_map(file)
    file.write_text(json.dumps({"labels": {"background": 0, "liver": 1, "left kidney": 2}}))
    assert decathlon == read_label_map(file) == LabelMap({"liver": (1,), "left kidney": (2,)})


def test_regions_and_ignore() -> None:
    found = make_label_map({"background": 0, "whole": [1, 2, 3], "core": (3, 2), "enhancing": 3, "ignore": 4})
    assert found.classes == {"whole": (1, 2, 3), "core": (2, 3), "enhancing": (3,)}
    assert found.ignore_label == 4
    assert found.known_values == {0, 1, 2, 3, 4}


def test_regions_without_an_order_are_painted_from_the_largest_to_the_smallest() -> None:
    found = check_trainable(make_label_map({"tip": 9, "whole": [2, 4, 9], "core": [4, 9]}))
    assert found.class_names == ("whole", "core", "tip")
    assert found.to_plain() == {"background": 0, "whole": 2, "core": 4, "tip": 9}
    assert found.label_values == (0, 2, 4, 9)
    assert found.region_indices == ((1, 2, 3), (2, 3), (3,))
    assert check_trainable(make_label_map({"b": 7, "a": 2})).region_indices == ()


@pytest.mark.parametrize(
    ("labels", "order", "message"),
    [
        ({"one": [1, 2], "other": [2, 3]}, (1, 3), "2 is painted as 3, which belongs to other regions"),
        ({"core": 2, "whole": [1, 2]}, (2, 1), "2 is painted as 1"),
        ({"both": [1, 2], "stem": 1, "tip": 2}, (1, 1, 2), "two classes paint the same value"),
    ],
)
def test_regions_that_masks_cannot_hold(labels: dict[str, object], order: tuple[int, ...], message: str) -> None:
    with pytest.raises(DataError, match=message):
        check_trainable(replace(make_label_map(labels), region_order=order), "dataset.json")


def test_names_are_matched_as_people_write_them() -> None:
    assert plain_name("Left  Kidney") == plain_name("left_kidney") == plain_name("left-kidney")


def test_agreement_lists_every_difference() -> None:
    ours = make_label_map({"liver": 1, "left kidney": 2, "whole": [1, 2]})
    check_agreement(ours, make_label_map({"Liver": 1, "left_kidney": 2, "aorta": 9}), Path("x"))
    with pytest.raises(DataError, match=r"liver is 2, not 1; 1\+3 is aorta") as error:
        check_agreement(
            make_label_map({"liver": 1, "cava": [1, 3]}), make_label_map({"liver": 2, "aorta": [1, 3]}), Path("x")
        )
    assert "cava" in str(error.value)


@pytest.mark.parametrize(
    "labels",
    [{}, {"background": 0}, {"a": 1.5}, {"a": True}, {"a": -1}, {"a": []}, {"a": 70_000}, {"a": None}, {"a": "x"}],
)
def test_unusable_labels_are_refused(labels: dict[str, object]) -> None:
    with pytest.raises(DataError):
        make_label_map(labels)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"labels": {}}', '{"labels": {"1": "a", "2": "a"}}', "\xff"])
def test_unusable_files_are_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "dataset.json"
    file.write_bytes(text.encode("latin-1"))
    with pytest.raises(DataError, match=r"dataset\.json"):
        read_label_map(file)
    with pytest.raises(DataError):
        read_label_map(tmp_path / "none.json")


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int64])
@pytest.mark.parametrize("low", [0, -3])
def test_values_are_counted(dtype: type, low: int) -> None:
    if low < np.iinfo(dtype).min:
        pytest.skip("no negative values")
    labels = np.random.default_rng(0).choice([low, 2, 7, 100], (9, 8, 7)).astype(dtype)[::-1, :, ::2]
    values, counts = np.unique(labels, return_counts=True)
    assert value_counts(labels) == dict(zip(values.tolist(), counts.tolist(), strict=True))
    assert value_counts(np.full((5, 4, 3), 70_000)) == {70_000: 60}


def test_many_labels_cost_time_in_proportion() -> None:
    """Each is compared with the others by a table; 60,000 pairwise comparisons each would take minutes."""
    label_map = make_label_map({f"c{value}": value for value in range(60_000)})
    assert len(label_map.classes) == 59_999
    with pytest.raises(DataError, match="'c7' and 'again' have the same value"):
        make_label_map({f"c{value}": value for value in range(60_000)} | {"again": 7})


def test_segments_that_a_file_numbers_otherwise() -> None:
    label_map = make_label_map({"background": 0, "liver": 1, "spleen": 2})
    check_segment_names({"Liver": 1, "tumour": 3}, label_map, "a.seg.nrrd")
    with pytest.raises(DataError, match=r"liver is 2, spleen is 1(.|\n)*liver is 1, spleen is 2"):
        check_segment_names({"spleen": 1, "liver": 2}, label_map, "a.seg.nrrd")
