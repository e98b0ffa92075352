"""Augmentation on a GPU against augmentation on the CPU, and batches that are completed in a stream of their own."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.made.prepared_cases import made_plan, numbered_case
from volseg.config.load import load_config
from volseg.config.schema import AugmentConfig
from volseg.data.augment import build_augmentation
from volseg.data.datasets import PatchDataset
from volseg.training.device_samples import DeviceSamples
from volseg.training.samples import batches

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU with CUDA")]

SETTINGS = AugmentConfig(affine=0.7, noise=0.0, blur=0.6, gamma=0.6, bias_field=0.6)


@pytest.mark.parametrize("in_plane", [False, True])
def test_deterministic_transforms_equal_those_of_the_cpu(in_plane: bool) -> None:
    made = build_augmentation(made_plan(modality="mri", rotate_in_plane_only=in_plane, spacing_mm=(2, 1, 1)), SETTINGS)
    generator = torch.Generator().manual_seed(0)
    image = torch.randn((8, 2, 10, 40, 36), generator=generator)
    label = torch.randint(-1, 3, (8, 10, 40, 36), generator=generator).to(torch.int16)
    drawn = [made.draw(np.random.default_rng([1, index])) for index in range(8)]
    on_cpu, label_on_cpu = made.apply(image, label, drawn)
    on_gpu, label_on_gpu = made.apply(image.cuda(), label.cuda(), drawn)
    torch.testing.assert_close(on_gpu.cpu(), on_cpu, rtol=1e-3, atol=1e-3)
    assert (label_on_gpu.cpu() == label_on_cpu).float().mean() > 0.9999


def test_noise_follows_its_seed_and_not_the_generator_of_the_network() -> None:
    made = build_augmentation(
        made_plan(), replace(SETTINGS, affine=0, blur=0, gamma=0, bias_field=0, noise=1, mirror=0)
    )
    drawn = [made.draw(np.random.default_rng(index)) for index in range(2)]
    zeros, labels = torch.zeros(2, 1, 20, 30, 30, device="cuda"), torch.zeros(2, 20, 30, 30, device="cuda")
    before = torch.cuda.get_rng_state()
    first = made.apply(zeros, labels, drawn)[0]
    assert torch.equal(torch.cuda.get_rng_state(), before)
    assert torch.equal(made.apply(zeros, labels, drawn)[0], first)
    assert torch.equal(made.apply(zeros[1:], labels[1:], drawn[1:])[0], first[1:])
    for sample, one in zip(first, drawn, strict=True):
        assert one.noise is not None
        assert float(sample.std()) == pytest.approx(one.noise[0], rel=0.05)


def test_batches_of_a_run_are_those_of_the_cpu() -> None:
    plan = made_plan(modality="mri")
    cases = [numbered_case(name=f"c{number}") for number in range(5)]
    samples = PatchDataset(cases, plan, build_augmentation(plan, SETTINGS), samples=2**40, seed=3, halo=1)
    config = load_config(None, ["train.batch_size=3", "data.workers=2"])
    on_gpu = batches(DeviceSamples(samples, torch.device("cuda")), config, 0)
    for _, (batch,), (expected,) in zip(range(6), on_gpu, batches(samples, config, 0), strict=False):
        assert batch["image"].is_cuda
        assert batch["label"].is_cuda
        assert batch["case"] == expected["case"]
        torch.testing.assert_close(batch["image"].cpu(), expected["image"], rtol=1e-3, atol=1e-2)
        assert (batch["label"].cpu() == expected["label"]).float().mean() > 0.99


def test_nothing_waits_for_the_gpu() -> None:
    made = build_augmentation(made_plan(modality="mri"), replace(SETTINGS, noise=0.6))
    drawn = [made.draw(np.random.default_rng([1, index])) for index in range(8)]
    image, label = torch.zeros(8, 1, 10, 40, 36, device="cuda"), torch.zeros(8, 10, 40, 36, device="cuda")
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        made.apply(image, label, drawn)
    finally:
        torch.cuda.set_sync_debug_mode(before)
