"""A ready plan is used for the data set that it was made of, and refused for another."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.made.datasets import case, measured
from volseg.errors import ConfigError
from volseg.io.cases import Case
from volseg.io.datasets import Dataset
from volseg.io.labels import LabelMap
from volseg.io.modality import UNKNOWN
from volseg.planning.derive import make_plan
from volseg.planning.ready import ready_plan
from volseg.planning.settings import PlanSettings

CASES = tuple(Case(name, (Path(f"{name}.nii.gz"),), None) for name in ("a", "b"))
DATASET = Dataset("Made", Path("data"), CASES, ("CT",), LabelMap({"organ": (1,)}), ())


@pytest.fixture
def file(tmp_path: Path) -> Path:
    make_plan(measured(replace(case(), id="a"), replace(case(), id="b"))).save(tmp_path / "plan.json")
    return tmp_path / "plan.json"


def test_the_plan_is_read_and_overridden(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    plan = ready_plan(file, {"token_stride": 8}, DATASET)
    assert (plan.token_stride, plan.decoder_strides[-1], plan.spacing_mm) == (8, (16, 16, 16), (1, 1, 1))
    assert plan.cases == ("a", "b")
    assert ready_plan(file, {}, replace(DATASET, channels=(UNKNOWN,))).channels == ("CT",)
    assert not caplog.records


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label_map": LabelMap({"organ": (1,), "lesion": (2,)})}, "other classes"),
        ({"label_map": LabelMap({"organ": (2,)})}, "other classes"),
        ({"label_map": LabelMap({"organ": (1,)}, 9)}, "other values to ignore"),
        ({"channels": ("T1",)}, "other channels"),
        ({"channels": (UNKNOWN, UNKNOWN)}, "other channels"),
    ],
)
def test_other_classes_and_channels_are_refused(change: dict, message: str, file: Path) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        ready_plan(file, {}, replace(DATASET, **change))
    assert str(file) in str(error.value)
    assert "make the plan anew" in str(error.value)


def test_cases_that_the_plan_does_not_know_are_named(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    more = replace(DATASET, cases=(*CASES, Case("new", (Path("new.nii.gz"),), None)))
    ready_plan(file, {}, more)
    assert "1 of 3 cases were not measured for this plan: new" in caplog.text


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"file": 3}, "not a file name"),
        ({"from": 3}, "plan.from is not a file name"),
        ({"from": "model.safetensors", "file": "plan.json"}, "both set"),
        ({"memory": "lots"}, "plan.memory is not a size"),
        ({"memory": "8GB", "file": "plan.json"}, "both set"),
        ({"memry": "8GB"}, r"did you mean plan\.memory"),
        ({"cases": []}, "cannot be overridden"),
    ],
)
def test_a_wrong_section_is_refused(section: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        PlanSettings.read(section)


def test_the_section_is_taken_apart() -> None:
    settings = PlanSettings.read({"memory": "8GB", "token_stride": 4, "patch_size": None})
    assert (settings.memory_bytes, settings.file, settings.overrides) == (8 * 10**9, None, {"token_stride": 4})
