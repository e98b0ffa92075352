"""Samples that are completed on the device; on the CPU, where the same code runs without a stream."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import Dataset

from tests.made.prepared_cases import made_plan, numbered_case
from volseg.cli.main import main
from volseg.config.load import load_config
from volseg.config.schema import AugmentConfig
from volseg.data.augment import build_augmentation
from volseg.data.datasets import PatchDataset
from volseg.errors import DataError, VolsegError
from volseg.io.model_file import read_model
from volseg.training import loop
from volseg.training.device_samples import DeviceSamples
from volseg.training.samples import batches

pytestmark = pytest.mark.usefixtures("no_pictures")

CPU = torch.device("cpu")
CASES = [numbered_case(name=f"c{number}") for number in range(5)]


def patches(augment: bool = True) -> PatchDataset:
    plan = made_plan(modality="mri")
    settings = AugmentConfig(affine=0.7, noise=0.5, blur=0.5, gamma=0.5, bias_field=0.5)
    made = build_augmentation(plan, settings) if augment else None
    return PatchDataset(CASES, plan, made, samples=2**40, seed=3, halo=1)


def stream(samples: Dataset[dict[str, Any]], workers: int = 0, first_step: int = 0) -> Iterator[list[dict[str, Any]]]:
    config = load_config(None, ["train.batch_size=3", "train.accumulate=2", f"data.workers={workers}"])
    return batches(samples, config, first_step)


def same(first: dict[str, Any], second: dict[str, Any]) -> bool:
    return first.keys() == second.keys() and all(
        torch.equal(value, second[key]) and value.dtype == second[key].dtype
        if isinstance(value, Tensor)
        else value == second[key]
        for key, value in first.items()
    )


@pytest.mark.parametrize("augment", [True, False])
@pytest.mark.parametrize("workers", [0, 2])
def test_the_batches_are_those_of_samples_that_workers_augment(workers: int, augment: bool) -> None:
    expected = islice(stream(patches(augment)), 1, 3)
    resumed = stream(DeviceSamples(patches(augment), CPU), workers, first_step=1)
    for step, step_expected in zip(resumed, expected, strict=False):
        assert [sorted(batch) for batch in step] == [["case", "image", "label"]] * 2
        assert all(same(*pair) for pair in zip(step, step_expected, strict=True))


def test_workers_augment_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    samples = DeviceSamples(patches(), CPU)
    monkeypatch.setattr(PatchDataset, "augmented", None)
    assert sorted(samples[0]) == ["case", "drawn", "image", "label"]


def test_one_batch_is_ready_before_the_step() -> None:
    loaded: list[int] = []

    def loader() -> Iterator[dict[str, Any]]:
        for number in range(4):
            loaded.append(number)
            yield {"image": torch.full((1, 1, 4, 8, 8), number), "label": torch.zeros(1, 4, 8, 8), "case": ["c"]}

    ready = DeviceSamples(patches(augment=False), CPU).batches(loader())
    numbers = []
    for batch in ready:
        assert isinstance(batch, dict)
        numbers.append(int(batch["image"].max()))
        assert len(loaded) == min(numbers[-1] + 2, 4)
    assert numbers == [0, 1, 2, 3]


class Damaged(PatchDataset):
    """The case of one sample cannot be read."""

    def cut(self, index: int) -> dict[str, Any]:
        """Raise for sample 8, in the third batch."""
        if index == 8:
            raise DataError("the file is damaged")
        return super().cut(index)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_comes_when_its_step_comes(workers: int) -> None:
    made = patches()
    damaged = Damaged(made.cases, made.plan, made.augmentation, samples=2**40, seed=3, halo=1)
    steps = stream(DeviceSamples(damaged, CPU), workers)
    assert len(next(steps)) == 2
    with pytest.raises(VolsegError, match="the file is damaged"):
        next(steps)


@pytest.mark.parametrize("tokens", [False, True])
def test_a_run_is_the_same_wherever_its_samples_are_completed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tokens: bool
) -> None:
    data = tmp_path / "data"
    assert main(["phantom", str(data), "--train", "3", "--test", "0"]) == 0
    settings = ["model.encoder=tiny", "model.weights=random", "model.features=4", "train.batch_size=2", "device=cpu"]
    settings += ["plan.patch_size=[8,48,48]", "plan.token_stride=8", "train.validate_cases=0", "train.max_steps=2"]
    settings += ["data.workers=1", *(["model.adaptation=frozen", "data.cache_tokens=true"] if tokens else [])]
    train = ["train", "--config", "demo", f"data.root={data}", *settings]
    assert main([*train, f"output={tmp_path / 'workers'}"]) == 0
    original = loop.training_samples
    monkeypatch.setattr(loop, "training_samples", lambda *args: DeviceSamples(original(*args), CPU))  # type: ignore[arg-type]
    assert main([*train, f"output={tmp_path / 'device'}"]) == 0
    first, second = (read_model(tmp_path / name / "model.safetensors")[0] for name in ("workers", "device"))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
