from __future__ import annotations

import random
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from tests.made.prepared_cases import made_plan, numbered_case
from volseg.config.schema import AugmentConfig
from volseg.data.augment import build_augmentation
from volseg.data.datasets import PatchDataset
from volseg.errors import DataError

CASES = [numbered_case(name=f"c{number}") for number in range(5)]
EVERYTHING = AugmentConfig(affine=1, noise=1, blur=1, gamma=1, bias_field=1, mirror=0.5)


def dataset(**changes: Any) -> PatchDataset:
    plan = made_plan(modality="mri")
    values: dict[str, Any] = {"samples": 12, "seed": 3, "halo": 1, "augmentation": build_augmentation(plan, EVERYTHING)}
    return PatchDataset(CASES, plan, **values | changes)


def same(first: dict[str, Any], second: dict[str, Any]) -> bool:
    return (
        first["case"] == second["case"]
        and torch.equal(first["image"], second["image"])
        and torch.equal(first["label"], second["label"])
    )


def test_a_sample_is_what_the_network_takes() -> None:
    sample = dataset()[0]
    assert (sample["image"].shape, sample["image"].dtype) == ((1, 6, 8, 8), torch.float32)
    assert (sample["label"].shape, sample["label"].dtype) == ((4, 8, 8), torch.int64)
    assert sample["image"].is_contiguous()
    assert len(dataset()) == 12


def test_the_label_s_halo_is_taken_off_after_augmentation() -> None:
    sample = dataset(augmentation=None)[2]
    lookup = torch.from_numpy(np.concatenate([[0], CASES[0].label.ravel()])).long()
    assert torch.equal(lookup[sample["image"][0, 1:-1].long()], sample["label"])


def test_the_index_alone_decides() -> None:
    made = dataset()
    before = [made[index] for index in range(12)]
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002
    torch.manual_seed(1)
    assert all(same(made[index], before[index]) for index in (7, 0, 11))
    assert not same(before[0], before[5])
    assert not same(before[0], dataset(seed=4)[0])


def test_workers_do_not_matter() -> None:
    def run(workers: int) -> list[Tensor]:
        context = "fork" if workers else None
        loader = DataLoader(dataset(), batch_size=2, num_workers=workers, multiprocessing_context=context)
        return [batch["image"] for batch in loader]

    for alone, shared in zip(run(0), run(2), strict=True):
        assert torch.equal(alone, shared)


def test_every_case_comes_once_a_turn_in_changing_order() -> None:
    made = dataset(samples=40, augmentation=None)
    turns = [[made[5 * turn + place]["case"] for place in range(5)] for turn in range(8)]
    assert all(set(Counter(turn).values()) == {1} for turn in turns)
    assert len({tuple(turn) for turn in turns}) > 4


def test_making_samples_leaves_all_generators_as_they_were() -> None:
    states = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()  # noqa: NPY002
    _ = dataset()[0]
    assert random.getstate() == states[0]
    np.testing.assert_array_equal(np.random.get_state()[1], states[1])  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), states[2])


def test_samples_are_batches_of_cut_patches_that_are_augmented_later() -> None:
    made = dataset()
    patches = [made.cut(index) for index in range(4)]
    assert (patches[0]["image"].shape, patches[0]["label"].shape) == ((1, 6, 8, 8), (6, 8, 8))
    assert patches[0]["label"].dtype == torch.from_numpy(CASES[0].label).dtype
    batch = {key: torch.stack([patch[key] for patch in patches]) for key in ("image", "label")}
    batch = made.augmented({**batch, "case": ["a"] * 4, "drawn": [patch["drawn"] for patch in patches]})
    assert batch.keys() == {"image", "label", "case"}
    for index in range(4):
        assert torch.equal(batch["image"][index], made[index]["image"])
        assert torch.equal(batch["label"][index], made[index]["label"])


def test_neighbouring_seeds_share_no_samples() -> None:
    drawn = {repr(dataset(seed=seed, samples=50).cut(index)["drawn"]) for seed in range(4) for index in range(50)}
    assert len(drawn) == 200


def test_an_index_outside_is_an_index_error() -> None:
    with pytest.raises(IndexError):
        _ = dataset()[12]
    with pytest.raises(IndexError):
        _ = dataset()[-1]


def test_no_case_is_an_error() -> None:
    with pytest.raises(DataError):
        PatchDataset([], made_plan(), samples=1)
