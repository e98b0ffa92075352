"""Where a run takes its plan from: the measured cases, a ready file, a limit of memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.made.datasets import write_dataset
from volseg.config.load import load_config
from volseg.config.schema import Config
from volseg.errors import ConfigError
from volseg.planning.plan import Plan
from volseg.training.experiment import prepare

pytestmark = pytest.mark.usefixtures("no_pictures")

SMALL = {"encoder": "tiny", "weights": "random", "features": 4, "max_features": 8}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = np.random.default_rng(0)
    label = np.zeros((24, 24, 16), np.uint8)
    label[4:20, 4:20, 4:12] = 1
    label[8:12, 8:12, 6:8] = 2
    images = [rng.normal(40, 20, label.shape).astype(np.int16) for _ in range(5)]
    return write_dataset(tmp_path_factory.mktemp("made"), images, [label] * 5)


def config(root: Path, output: Path, plan: dict[str, Any], batch_size: int | None = None) -> Config:
    train = {"max_steps": 1, "batch_size": batch_size}
    data = {"root": str(root), "workers": 0}
    settings = {"output": str(output), "device": "cpu", "data": data, "plan": plan, "train": train, "model": SMALL}
    return load_config(settings)


def test_a_ready_plan_is_used_without_measuring(root: Path, tmp_path: Path) -> None:
    with prepare(config(root, tmp_path / "a", {})) as measured:
        plan = measured.plan
    assert measured.measured is not None
    assert (measured.config.train.batch_size, plan.cases) == (2, ("c0", "c1", "c2", "c3", "c4"))
    ready = {"file": str(tmp_path / "a" / "plan.json"), "mirror_axes": []}
    with prepare(config(root, tmp_path / "b", ready, batch_size=3)) as second:
        assert second.measured is None
    assert (second.plan.spacing_mm, second.plan.mirror_axes) == (plan.spacing_mm, ())
    assert (second.plan.batch_size, second.config.train.batch_size) == (3, 3)
    assert Plan.load(tmp_path / "b" / "plan.json") == second.plan


def test_a_plan_of_other_classes_stops_the_run(root: Path, tmp_path: Path) -> None:
    label = np.ones((8, 8, 8), np.uint8)
    other = write_dataset(tmp_path / "other", [label] * 5, [label] * 5, names=("background", "bone", "lesion"))
    with prepare(config(root, tmp_path / "a", {})) as first:
        first.plan.save(tmp_path / "plan.json")
    with (
        pytest.raises(ConfigError, match="the plan has other classes"),
        prepare(config(other, tmp_path / "b", {"file": str(tmp_path / "plan.json")})),
    ):
        raise AssertionError("the run was prepared")


def test_a_limit_of_memory_makes_the_plan_smaller(root: Path, tmp_path: Path) -> None:
    with prepare(config(root, tmp_path / "a", {"memory": "60MB"})) as small:
        assert small.plan.batch_size == 2
    assert np.prod(small.plan.patch_size) < 16 * 24 * 24  # the whole case
    assert "tiny (full)" in small.plan.reasons["patch_size"]
