"""A data set planned with the plan of a model of another data set."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.made.datasets import case, measured, shape
from tests.made.prepared_cases import made_plan
from volseg.errors import ConfigError, ModelFileError
from volseg.io.datasets import Dataset
from volseg.io.model_file import save_model
from volseg.planning.channel import ChannelIntensity
from volseg.planning.examine import examine
from volseg.planning.fingerprint import Fingerprint, Survey
from volseg.planning.from_model import TAKEN, plan_of_model
from volseg.planning.plan import Plan


def model_file(path: Path, plan: Plan) -> Path:
    import torch

    content = {"config": {}, "plan": plan.to_dict(), "labels": plan.labels}
    save_model(path, {"weight": torch.zeros(1)}, content)
    return path


def planned(fingerprint: Fingerprint, path: Path | None, **overrides: Any) -> Plan:
    dataset = Dataset("New", Path("data"), (), fingerprint.channels, fingerprint.label_map, ())
    plan = examine(Survey(dataset=dataset, fingerprint=fingerprint, findings=()), overrides, model=path).plan
    assert plan is not None
    return plan


NEW = measured(case((200, 200, 60), (0.7, 0.7, 4.0), {"bone": shape((9, 9, 9)), "muscle": shape()}))


def test_spacing_intensity_and_sizes_are_the_models_and_classes_are_new(tmp_path: Path) -> None:
    old = made_plan(batch_size=3)
    path = model_file(tmp_path / "model.safetensors", old)
    plan, own = planned(NEW, path), planned(NEW, None)
    assert replace(planned(NEW, tmp_path), reasons=plan.reasons) == plan  # a run folder
    assert {key: getattr(plan, key) for key in TAKEN} == {key: getattr(old, key) for key in TAKEN}
    assert (plan.labels, plan.dataset) == ({"background": 0, "bone": 1, "muscle": 2}, "Made")
    assert (plan.mirror_axes, plan.ranges) == (own.mirror_axes, own.ranges)
    assert own.spacing_mm != plan.spacing_mm
    assert plan.reasons["spacing_mm"] == f"that of the model {path}"
    assert plan.reasons["mirror_axes"] == own.reasons["mirror_axes"]


def test_fields_set_by_hand_win_and_strides_follow_them(tmp_path: Path) -> None:
    path = model_file(tmp_path / "model.safetensors", made_plan())
    plan = planned(NEW, path, token_stride=8, batch_size=5)
    assert (plan.token_stride, plan.decoder_strides[-1][1:], plan.batch_size) == (8, (8, 8), 5)
    assert plan.reasons["token_stride"] == "set by hand"
    np.testing.assert_array_equal(np.mod(plan.patch_size, plan.decoder_strides[-1]), 0)


def test_intensity_rules_follow_the_names_of_the_channels(tmp_path: Path) -> None:
    ct, raw = made_plan().intensity[0], ChannelIntensity(rule="none")
    old = made_plan(modality="mri", channels=("CT", "raw"), intensity=(ct, raw))
    path = model_file(tmp_path / "model.safetensors", old)
    new = measured(case(), channels=("raw", "ct"))
    assert planned(new, path).intensity == (raw, ct)
    assert planned(replace(new, channels=("T1", "T2")), path).intensity == (ct, raw)


def test_a_plan_that_does_not_fit_is_refused_with_both_values(tmp_path: Path) -> None:
    path = model_file(tmp_path / "model.safetensors", made_plan())
    with pytest.raises(ConfigError, match=r"another number of channels(.|\n)*found: 1: CT(.|\n)*2, those(.|\n)*omit"):
        planned(measured(case(), channels=("CT", "CT2")), path)
    mri = measured(case(), channels=("T1",))
    with pytest.raises(ConfigError, match=r"another modality(.|\n)*found: ct\n  expected: mri\n  hint: omit plan.from"):
        planned(mri, path)
    assert planned(mri, path, modality="mri").intensity[0].rule == "zscore"
    other = tmp_path / "other.safetensors"
    save_model(other, {}, {"config": {}, "plan": {"version": 1}, "labels": {"background": 0}})
    with pytest.raises(ModelFileError, match="plan of the model file is damaged"):
        plan_of_model(other, 1)
