from __future__ import annotations

import pickle
import time
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from tests.made.prepared_cases import made_plan
from volseg.config.schema import AugmentConfig
from volseg.data.affine import Motion, affine
from volseg.data.augment import (
    BIAS_COEFFICIENTS,
    BLUR_SIGMA_VOX,
    LOG_GAMMA,
    NOISE_STD,
    Augmentation,
    Drawn,
    build_augmentation,
)
from volseg.data.transforms import bias_field, blur, gamma, noise
from volseg.training.replay import Waits

OFF: dict[str, Any] = dict.fromkeys(("affine", "noise", "blur", "gamma", "bias_field", "mirror"), 0.0)
NOTHING = Drawn(motion=None, flipped=(), noise=None, blur_mm=None, gamma=None, bias_field=None)
DRAWS = 3000


def config(**changes: float) -> AugmentConfig:
    return AugmentConfig(**OFF | changes)


def augmentation(settings: AugmentConfig, **plan: Any) -> Augmentation:
    return build_augmentation(made_plan(**{"modality": "mri", **plan}), settings)


def drawn(made: Augmentation, number: int = DRAWS) -> list[Drawn]:
    return [made.draw(np.random.default_rng([7, index])) for index in range(number)]


@pytest.fixture
def patches() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    image = torch.randn((4, 2, 6, 14, 12), generator=generator)
    label = torch.randint(-1, 3, (4, 6, 14, 12), generator=generator).to(torch.int8)
    return image, label


@pytest.mark.parametrize("name", OFF)
def test_each_transform_keeps_shape_and_type_and_the_input(patches: tuple[Tensor, Tensor], name: str) -> None:
    image, label = patches
    before = image.clone(), label.clone()
    made = augmentation(config(**{name: 1.0}))
    changed, moved = made.apply(image, label, drawn(made, 4))
    assert (changed.shape, changed.dtype) == (image.shape, torch.float32)
    assert (moved.shape, moved.dtype) == (label.shape, torch.int8)
    assert torch.isfinite(changed).all()
    assert not torch.equal(changed, image)
    assert torch.equal(moved, label) == (name in ("noise", "blur", "gamma", "bias_field"))
    assert torch.equal(image, before[0])
    assert torch.equal(label, before[1])


def test_nothing_happens_at_probability_zero(patches: tuple[Tensor, Tensor]) -> None:
    made = augmentation(config())
    assert drawn(made, 4) == [NOTHING] * 4
    image, label = made.apply(*patches, [NOTHING] * 4)
    assert torch.equal(image, patches[0])
    assert torch.equal(label, patches[1])


def test_the_generator_decides_everything_and_no_other_is_used(patches: tuple[Tensor, Tensor]) -> None:
    made = augmentation(config(**dict.fromkeys(OFF, 1.0)))
    states = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    first = drawn(made, 20)
    image, label = made.apply(*patches, first[:4])
    assert torch.equal(torch.get_rng_state(), states[0])
    np.testing.assert_array_equal(np.random.get_state()[1], states[1])  # noqa: NPY002
    torch.manual_seed(1)
    assert drawn(made, 20) == first
    assert len({repr(one) for one in first}) == 20
    again = made.apply(*patches, first[:4])
    assert torch.equal(again[0], image)
    assert torch.equal(again[1], label)


def test_it_pickles() -> None:
    made = augmentation(config(**dict.fromkeys(OFF, 1.0)))
    assert pickle.loads(pickle.dumps(made)) == made
    assert pickle.loads(pickle.dumps(drawn(made, 3))) == drawn(made, 3)


def test_every_transform_is_as_probable_as_configured() -> None:
    settings = AugmentConfig(affine=0.5, noise=0.15, blur=0.1, gamma=0.3, bias_field=0.2, mirror=0.4)
    samples = drawn(augmentation(settings, mirror_axes=(0, 2)))
    happened = {
        "affine": [one.motion is not None for one in samples],
        "noise": [one.noise is not None for one in samples],
        "blur": [one.blur_mm is not None for one in samples],
        "gamma": [one.gamma is not None for one in samples],
        "bias_field": [one.bias_field is not None for one in samples],
        "mirror": [0 in one.flipped for one in samples],
        "mirror 2": [2 in one.flipped for one in samples],
    }
    for name, times in happened.items():
        assert stats.binomtest(sum(times), DRAWS, getattr(settings, name.split()[0])).pvalue > 1e-3, name
    assert {one.flipped for one in samples} == {(), (0,), (2,), (0, 2)}
    together = np.corrcoef(np.array(list(happened.values()), dtype=float))  # transforms are independent
    assert np.abs(together - np.eye(len(together))).max() < 4 / np.sqrt(DRAWS)


def is_uniform(values: Any, low: float, high: float) -> bool:
    return bool(stats.kstest(np.ravel(values), stats.uniform(low, high - low).cdf).pvalue > 1e-3)


@pytest.mark.parametrize("in_plane", [False, True])
def test_parameters_are_uniform_in_their_ranges(in_plane: bool) -> None:
    always = AugmentConfig(**dict.fromkeys(OFF, 1.0), rotation_degrees=15, scale=0.2)
    samples = drawn(augmentation(always, rotate_in_plane_only=in_plane, spacing_mm=(4.0, 1.5, 2.0)))
    motions = [one.motion for one in samples if one.motion]
    scales, degrees = (np.array(values) for values in zip(*motions, strict=True))
    assert is_uniform(scales[:, 1], 0.8, 1.2)
    np.testing.assert_array_equal(scales[:, 2], scales[:, 1])
    np.testing.assert_array_equal(scales[:, 0], 1.0 if in_plane else scales[:, 1])
    assert is_uniform(degrees[:, 0], -15, 15)
    assert all(is_uniform(column, -15, 15) != in_plane for column in degrees[:, 1:].T)
    assert bool(degrees[:, 1:].any()) != in_plane
    assert is_uniform([one.noise[0] for one in samples if one.noise], *NOISE_STD)
    assert is_uniform([one.noise[1] for one in samples if one.noise], 0, 2**63)
    assert is_uniform([one.blur_mm / 1.5 for one in samples if one.blur_mm], *BLUR_SIGMA_VOX)
    assert is_uniform(np.log([one.gamma for one in samples if one.gamma]), *LOG_GAMMA)
    coefficients = np.array([one.bias_field for one in samples])
    assert coefficients.shape == (DRAWS, 20)
    assert all(is_uniform(column, *BIAS_COEFFICIENTS) for column in coefficients.T)


def test_a_probability_changes_no_other_transform() -> None:
    always = augmentation(config(**dict.fromkeys(OFF, 1.0)))
    for name, field in (("affine", "motion"), ("noise", "noise"), ("mirror", "flipped"), ("bias_field", "bias_field")):
        some = augmentation(config(**dict.fromkeys(OFF, 1.0) | {name: 0.0}))
        for one, other in zip(drawn(always, 5), drawn(some, 5), strict=True):
            assert replace(other, **{field: getattr(one, field)}) == one
            assert getattr(other, field) == getattr(NOTHING, field)


def test_samples_of_a_batch_are_independent(patches: tuple[Tensor, Tensor]) -> None:
    made = augmentation(AugmentConfig(affine=0.6, noise=0.5, blur=0.5, gamma=0.5, bias_field=0.5), spacing_mm=(2, 1, 1))
    for offset in range(5):
        samples = [made.draw(np.random.default_rng([offset, number])) for number in range(4)]
        image, label = made.apply(*patches, samples)
        for number, sample in enumerate(samples):
            one, one_label = made.apply(*(tensor[number : number + 1] for tensor in patches), [sample])
            assert torch.equal(one[0], image[number])
            assert torch.equal(one_label[0], label[number])


def test_nothing_waits_for_a_gpu(patches: tuple[Tensor, Tensor]) -> None:
    made = augmentation(config(**dict.fromkeys(OFF, 1.0)))
    with Waits(torch.device("cpu")) as waits:
        made.apply(*patches, [*drawn(made, 2), NOTHING, NOTHING])
    assert set(waits.names) == {"lift_fresh"}  # parameters on the CPU, which are copied without waiting


def test_transforms_follow_each_other_in_order(patches: tuple[Tensor, Tensor]) -> None:
    image, label = (tensor[:1] for tensor in patches)
    made = augmentation(config(), spacing_mm=(2.0, 1.0, 1.5))
    motion, factors = Motion((1.1, 1.1, 1.1), (5.0, -3.0, 8.0)), tuple(np.linspace(-0.2, 0.2, 20))
    sample = Drawn(motion=motion, flipped=(0, 2), noise=(0.2, 5), blur_mm=0.8, gamma=1.3, bias_field=factors)
    changed, moved = made.apply(image, label, [sample])
    expected, expected_label = affine(image, label, [motion], made.spacing_mm)
    expected = noise(expected.flip((2, 4)), [(0.2, 5)])
    expected = bias_field(gamma(blur(expected, [0.8], made.spacing_mm), [1.3]), [factors])
    assert torch.equal(changed, expected)
    assert torch.equal(moved, expected_label.flip((1, 3)))


@pytest.mark.parametrize("axes", [(), (0,), (2,), (0, 1, 2)])
def test_mirroring_follows_the_plan(patches: tuple[Tensor, Tensor], axes: tuple[int, ...]) -> None:
    made = augmentation(config(mirror=1.0), mirror_axes=axes)
    image, label = made.apply(*patches, drawn(made, 4))
    assert torch.equal(image, patches[0].flip([axis + 2 for axis in axes]))
    assert torch.equal(label, patches[1].flip([axis + 1 for axis in axes]))


def test_image_and_label_move_together() -> None:
    label = torch.zeros(5, 12, 24, 24, dtype=torch.int8)
    label[:, 3:9, 5:15, 6:18] = 1
    made = augmentation(config(affine=1.0, mirror=1.0), spacing_mm=(2.0, 1.0, 1.0))
    image, moved = made.apply(label[:, None].float(), label, drawn(made, 5))
    for number in range(5):
        assert ((image[number, 0] > 0.5) == (moved[number] == 1)).float().mean() > 0.97
        assert not torch.equal(moved[number], label[number])
    assert set(moved.unique().tolist()) == {0, 1}


def test_thick_slices_turn_and_scale_in_plane_only() -> None:
    """Slices of different constant value stay in their places: nothing moves along D."""
    image = torch.arange(1.0, 7.0).view(1, 1, 6, 1, 1).expand(5, 1, 6, 16, 16)
    label = image[:, 0].to(torch.int8)
    for in_plane in (True, False):
        made = augmentation(config(affine=1.0), rotate_in_plane_only=in_plane)
        moved, moved_label = made.apply(image, label, drawn(made, 5))
        inside = (..., slice(6, 10), slice(6, 10))
        assert torch.allclose(moved[inside], image[inside], atol=1e-4) == in_plane
        assert torch.equal(moved_label[inside], label[inside]) == in_plane


def test_ct_has_no_bias_field() -> None:
    assert drawn(augmentation(config(bias_field=1.0), modality="ct"), 3) == [NOTHING] * 3


def test_what_is_drawn_is_plain_and_small() -> None:
    made = augmentation(config(**dict.fromkeys(OFF, 1.0)))
    assert len(pickle.dumps(made.draw(np.random.default_rng(0)))) < 1000
    assert "numpy" not in repr([type(value) for value in asdict(made.draw(np.random.default_rng(0))).values()])


def test_it_is_fast_enough() -> None:
    """A few milliseconds on average for a hippocampus patch (here with room for a busy machine)."""
    image, label = torch.randn(1, 1, 42, 56, 40), torch.zeros(1, 42, 56, 40, dtype=torch.int8)
    made = augmentation(AugmentConfig(), spacing_mm=(1.0, 1.0, 1.0))
    samples = drawn(made, 31)
    made.apply(image, label, samples[:1])
    begun_s = time.process_time()
    for sample in samples[1:]:
        made.apply(image, label, [sample])
    assert (time.process_time() - begun_s) / 30 < 0.03
