"""Label values up to 65,535 from planning to scores; larger ones are refused, and neither costs memory by its value."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import volseg
from tests.made.allocations import little_memory
from tests.made.datasets import save_nifti, write_dataset
from volseg.errors import DataError
from volseg.geometry.grid import Grid
from volseg.geometry.ops import label_boxes
from volseg.geometry.volume import Mask
from volseg.io.datasets import read_dataset
from volseg.metrics import case_scores
from volseg.postprocessing.rules import Postprocessing
from volseg.preprocessing.preprocess import preprocess_case

SHAPE = (12, 12, 12)
HUGE = 300_000_000


def made(values: tuple[int, int]) -> np.ndarray:
    """A block of 4 x 4 x 4 voxels and one of 3 x 3 x 6."""
    label = np.zeros(SHAPE, np.int32)
    label[1:5, 1:5, 1:5] = values[0]
    label[7:10, 7:10, 2:8] = values[1]
    return label


def write(root: Path, label: np.ndarray, labels: dict[str, str]) -> Path:
    write_dataset(root, [np.arange(12**3, dtype=np.int16).reshape(SHAPE)], [label])
    description = json.loads((root / "dataset.json").read_text())
    (root / "dataset.json").write_text(json.dumps({**description, "labels": labels}))
    return root


def test_labels_keep_their_values_from_planning_to_scores(tmp_path: Path) -> None:
    label = made((1000, 65_535))
    root = write(tmp_path / "data", label, {"0": "background", "1000": "organ", "65535": "lesion"})
    plan = volseg.plan(root)
    assert plan.labels == {"background": 0, "organ": 1000, "lesion": 65_535}

    prepared = preprocess_case(read_dataset(root).cases[0], plan)
    assert [int((prepared.label == index).sum()) for index in range(3)] == [12**3 - 64 - 54, 64, 54]
    assert set(prepared.locations[:, 0].tolist()) == {1, 2}

    prediction = made((1000, 65_535))
    prediction[1, 1:5, 1:5] = 0  # 48 of the 64 voxels
    save_nifti(tmp_path / "masks/c0.nii.gz", prediction)
    result = volseg.evaluate(tmp_path / "masks", root / "labelsTr", tmp_path / "scores", dataset=root / "dataset.json")
    scores = result.evaluation.results[0].scores
    assert scores["organ"]["dice"] == pytest.approx(2 * 48 / (48 + 64))
    assert scores["lesion"]["dice"] == 1


def test_postprocessing_of_the_largest_label() -> None:
    labels = made((1000, 65_535)).astype(np.uint16)
    labels[11, 11, 11] = 65_535
    cleaned, _ = Postprocessing(largest_component=("lesion",)).apply(
        Mask(labels, Grid(SHAPE, np.eye(4))), {"background": 0, "organ": 1000, "lesion": 65_535}
    )
    np.testing.assert_array_equal(cleaned.labels, made((1000, 65_535)))


def test_a_huge_value_in_a_label_file_is_refused_with_its_name(tmp_path: Path) -> None:
    root = write(tmp_path / "data", made((1, HUGE)), {"0": "background", "1": "organ", "2": "lesion"})
    with little_memory(), pytest.raises(DataError, match=r"too large[\s\S]*300000000") as error:
        volseg.plan(root)
    assert "c0.nii.gz" in str(error.value)

    save_nifti(tmp_path / "masks/c0.nii.gz", made((1, 2)))
    with little_memory():
        result = volseg.evaluate(
            tmp_path / "masks", root / "labelsTr", tmp_path / "scores", dataset=root / "dataset.json"
        )
    assert "too large" in str(result.evaluation.results[0].error)


def test_a_huge_value_in_dataset_json_is_refused(tmp_path: Path) -> None:
    root = write(tmp_path, made((1, 2)), {"0": "background", "1": "organ", str(HUGE): "lesion"})
    with little_memory(), pytest.raises(DataError, match=r"no usable label value[\s\S]*dataset\.json"):
        volseg.plan(root)


def test_huge_values_of_arrays_cost_no_memory() -> None:
    labels = made((7, HUGE))
    with little_memory():
        assert label_boxes(labels, (7, 8, HUGE, HUGE + 1)) == {
            7: (slice(1, 5), slice(1, 5), slice(1, 5)),
            HUGE: (slice(7, 10), slice(7, 10), slice(2, 8)),
        }
        with pytest.raises(DataError, match=str(HUGE)):
            case_scores(labels, labels, (1, 1, 1), {"lesion": HUGE})
        assert case_scores(labels, labels, (1, 1, 1), {"organ": 7})["organ"]["dice"] == 1
