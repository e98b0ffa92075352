"""A prediction in slabs against the same prediction in one piece."""

from __future__ import annotations

import copy
import errno
import itertools
import os
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from volseg.errors import ConfigError, OutputError
from volseg.geometry.grid import Grid
from volseg.geometry.volume import Volume
from volseg.inference import predictor as predictor_module
from volseg.inference.ensemble import Network
from volseg.inference.options import PredictOptions
from volseg.inference.predictor import Predictor
from volseg.inference.restore import Member, restore_mask
from volseg.inference.sliding import memory
from volseg.inference.sliding.columns import Flips
from volseg.inference.sliding.memory import Limits, Schedule, choose_schedule
from volseg.inference.sliding.slabs import ArraySlabs, ScanSlabs
from volseg.inference.sliding.stream import Counts, predict_logits, stream_logits
from volseg.inference.sliding.windows import Layout
from volseg.models.contracts import SegmentationNetwork
from volseg.planning.plan import Plan
from volseg.preprocessing.preprocess import prepare_image, preprocess_image

Build = Callable[..., SegmentationNetwork]
MakePlan = Callable[..., Plan]
SCHEDULES = {
    "one window": Schedule(windows=1, chunk=3),
    "two windows": Schedule(windows=2, batch=3),
    "no tokens kept": Schedule(windows=2, keep_tokens=False),
    "columns side by side": Schedule(keep_tokens=False, columns=3, batch=2),
    "slabs of columns": Schedule(windows=2, keep_tokens=False, columns=2, batch=2),
}


def noise(shape: tuple[int, int, int], channels: int = 1) -> NDArray[np.float32]:
    return np.random.default_rng(1).standard_normal((channels, *shape)).astype(np.float32)


@pytest.mark.parametrize("depth", [11, 4, 3], ids=["the last window is moved back", "one window", "padded"])
@pytest.mark.parametrize("axes", [(), (0, 2)], ids=["plain", "mirrored"])
@pytest.mark.parametrize("adjacent", [1, 3])
def test_slabs_equal_the_whole(
    depth: int, axes: tuple[int, ...], adjacent: int, make_plan: MakePlan, build: Build
) -> None:
    plan = make_plan()
    model = build(plan, adjacent_slices=adjacent)
    image = noise((depth, 20, 24))
    whole = predict_logits(model, image, plan, tta_axes=axes)
    for name, schedule in SCHEDULES.items():
        slabs = predict_logits(model, image, plan, tta_axes=axes, schedule=schedule)
        assert slabs.shape == whole.shape
        assert (slabs - whole).abs().max() < 1e-4, name


@pytest.mark.parametrize(("schedule", "expected"), [(SCHEDULES["one window"], 1.0), (Schedule(), 1.0)])
def test_kept_tokens_are_not_encoded_again(
    schedule: Schedule, expected: float, make_plan: MakePlan, build: Build
) -> None:
    counts = Counts()
    plan = make_plan()
    image = ArraySlabs(noise((15, 20, 16)))
    list(stream_logits([build(plan)], image, plan, tta_axes=(0, 1), schedule=schedule, counts=counts))
    assert counts.summary()["encodings_per_slice"] == expected
    assert counts.windows == 7 * 2


@pytest.mark.parametrize("model", ["nearest", "identity", "dynunet"])
def test_without_an_encoder_no_encodings_are_counted(
    model: str, nearest_model: SegmentationNetwork, make_plan: MakePlan, build: Build
) -> None:
    plan, counts = make_plan(patch_size=(8, 16, 16)), Counts()
    settings = {"baseline": model} if model == "dynunet" else {"encoder": model}
    network = nearest_model if model == "nearest" else build(plan, **settings)
    list(stream_logits([network], ArraySlabs(noise((12, 16, 16))), plan, tta_axes=(0, 1), counts=counts))
    assert counts.summary() == {"slab_slices": 12, "windows": 2, "windows_skipped": 0}


def test_a_network_without_an_encoder_does_not_change_the_encodings(
    nearest_model: SegmentationNetwork, make_plan: MakePlan, build: Build
) -> None:
    plan, counts = make_plan(), Counts()
    list(
        stream_logits(
            [nearest_model, build(plan, adjacent_slices=1)], ArraySlabs(noise((15, 20, 16))), plan, counts=counts
        )
    )
    assert counts.encoded == counts.slices == 15 * 2


def test_slices_encoded_again_are_counted(make_plan: MakePlan, build: Build) -> None:
    """Windows of 4 slices, 2 apart, over 12 slices: slabs of three windows span 8 of them, the last of two spans 6."""
    counts = Counts()
    plan = make_plan()
    schedule = Schedule(windows=3, keep_tokens=False)
    list(stream_logits([build(plan)], ArraySlabs(noise((12, 16, 16))), plan, schedule=schedule, counts=counts))
    assert counts.encoded == 8 + 6
    assert schedule.encodings(Layout.of((12, 16, 16), plan.patch_size)) == pytest.approx(14 / 12)


def test_prepared_slabs_equal_the_whole_image(make_plan: MakePlan) -> None:
    plan = make_plan()
    data = np.random.default_rng(0).normal(0, 100, (1, 21, 17, 30)).astype(np.int16)
    volume = Volume(data, Grid((21, 17, 30), np.diag([1.1, 2.9, 1.3, 1.0])))
    whole, _ = preprocess_image(volume, plan)
    image = prepare_image(volume, plan)
    assert image.shape == whole.grid.shape
    for start, stop in ((0, 5), (3, 11), (11, image.shape[0])):
        np.testing.assert_allclose(image.slab(start, stop), whole.data[:, start:stop], atol=1e-3)


def predict(predictor: Predictor, data: NDArray[Any], spacing: float = 2.0, **options: Any) -> Any:
    volume = Volume(data[None], Grid(data.shape, np.diag([spacing, spacing, spacing, 1.0])))
    return predictor.segment(volume, PredictOptions(**options))


def test_less_memory_gives_the_same_mask(make_plan: MakePlan, build: Build) -> None:
    """From the scan to the mask through thinner slabs; too little memory is refused, with what is needed."""
    plan = make_plan()
    predictor = Predictor.from_model(build(plan), plan, device="cpu")
    data = np.random.default_rng(0).normal(0, 1, (18, 20, 60)).astype(np.float32)
    layout = Layout.of((60, 20, 18), plan.patch_size)
    least = 4_000_000
    with pytest.raises(ConfigError, match=r"at least .* [KMG]B"):
        predict(predictor, data, max_memory_bytes=1000)
    thin = predict(predictor, data, 1.7, max_memory_bytes=least)
    assert thin.counts["slab_slices"] == 4
    assert thin.counts["encodings_per_slice"] == 1
    logits = predict_logits(build(plan), preprocess_image(*scan_of(data, 1.7), plan)[0].data, plan)
    assert len(layout.starts[0]) > 1
    trace = prepare_image(*scan_of(data, 1.7), plan).trace
    whole = restore_mask([Member([(0, [logits])], trace)], plan.mask_values)
    assert (thin.mask.labels == whole).mean() > 0.9999


def scan_of(data: NDArray[Any], spacing: float) -> tuple[Volume]:
    return (Volume(data[None], Grid(data.shape, np.diag([spacing, spacing, spacing, 1.0]))),)


def test_tokens_that_do_not_fit_are_encoded_again(make_plan: MakePlan, build: Build) -> None:
    """Many columns make the kept tokens large; then slabs are deep enough to encode few slices again."""
    plan = make_plan()
    model = build(plan)
    layout = Layout.of((80, 200, 200), plan.patch_size)
    flips = Flips.along(())
    enough = choose_schedule([model], plan, layout, flips, 40_000, Limits(200_000_000))
    assert enough == Schedule(windows=1)
    tight = choose_schedule([model], plan, layout, flips, 40_000, Limits(45_000_000))
    assert not tight.keep_tokens
    assert 1 < tight.encodings(layout) <= 1.3


def test_without_a_limit_more_than_the_default_is_allowed(
    make_plan: MakePlan, build: Build, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The default limit is enough for most scans; beyond it a prediction is not refused."""
    plan = make_plan()
    model, layout, flips = build(plan), Layout.of((80, 200, 200), plan.patch_size), Flips.along(())
    assert choose_schedule([model], plan, layout, flips, 40_000, Limits()) == Schedule(windows=1)
    monkeypatch.setattr(memory, "DEFAULT_BYTES", 1000)
    with caplog.at_level("INFO"):
        smallest = choose_schedule([model], plan, layout, flips, 40_000, Limits())
    assert not smallest.keep_tokens
    assert "prediction needs about 0.0 GB" in caplog.text


def test_a_gpu_gets_thick_slabs_and_many_windows_at_a_time_as_far_as_they_fit(
    make_plan: MakePlan, build: Build
) -> None:
    plan = make_plan()
    model, layout, flips = build(plan).to("meta"), Layout.of((80, 200, 200), plan.patch_size), Flips.along(())
    chosen = [
        choose_schedule([model], plan, layout, flips, 40_000, Limits(device=size))
        for size in (10**10, 10**8, 3 * 10**7, 2 * 10**7)
    ]
    assert chosen[0] == Schedule(keep_tokens=False, columns=8)
    work = [(one.groups(layout.starts[0]), one.columns * one.batch) for one in chosen]
    assert all(len(a[0]) <= len(b[0]) for a, b in itertools.pairwise(work))
    assert work[-1][1] < work[0][1] or len(work[-1][0]) > len(work[0][0])
    with pytest.raises(ConfigError, match=r"memory of the GPU(.|\n)*at least(.|\n)*--max-device-memory"):
        choose_schedule([model], plan, layout, flips, 40_000, Limits(device=1000))
    with pytest.raises(ConfigError, match=r"so little memory\n(.|\n)*raise --max-memory"):
        choose_schedule([model], plan, layout, flips, 40_000, Limits(host=1000, device=10**10))


def test_out_of_memory_is_tried_again_with_less_and_said_once(
    make_plan: MakePlan, build: Build, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, failures = make_plan(), 2
    model: Any = build(plan)
    volume = Volume(noise((9, 20, 18)), Grid((9, 20, 18), np.eye(4)))
    expected = Predictor.from_model(model, plan, "cpu").segment(volume).mask.labels
    decode = model.decode

    def failing(*arguments: Any) -> Any:
        nonlocal failures
        failures -= 1
        if failures >= 0:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return decode(*arguments)

    monkeypatch.setattr(model, "decode", failing)
    predictor = Predictor.from_model(model, plan, "cpu")
    for _ in range(2):
        assert np.array_equal(predictor.segment(volume).mask.labels, expected)
    assert caplog.text.count("less memory than estimated") == 1


def test_a_scan_that_never_fits_a_gpu_leaves_the_memory_to_the_next(
    make_plan: MakePlan, build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = make_plan()
    model: Any = build(plan)
    on_gpu = copy.deepcopy(model).to("meta")
    monkeypatch.setattr(predictor_module, "free_bytes", lambda device: 10**9)
    monkeypatch.setattr(predictor_module, "choose_schedule", lambda models, *rest: choose_schedule([on_gpu], *rest))
    volume = Volume(noise((9, 20, 18)), Grid((9, 20, 18), np.eye(4)))
    predictor = Predictor.from_model(model, plan, "cpu")
    expected = predictor.segment(volume).mask.labels

    def full(*arguments: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    for stated in (None, 10**9):
        with monkeypatch.context() as patched:
            patched.setattr(model, "decode", full)
            with pytest.raises(ConfigError, match=r"of the GPU\n(.|\n)* to be had\n(.|\n)*end other programs"):
                predictor.segment(volume, PredictOptions(max_device_memory_bytes=stated))
        assert np.array_equal(predictor.segment(volume).mask.labels, expected)


def read_probabilities(path: Path) -> np.ndarray:
    """Read ``(K, D, H, W)`` from a NIfTI file with the classes last."""
    return np.moveaxis(np.asanyarray(nibabel.load(path).dataobj), -1, 0)


def test_an_ensemble_is_the_mean_of_probabilities(make_plan: MakePlan, build: Build, tmp_path: Path) -> None:
    plan = make_plan(spacing_mm=(2.5, 2.0, 2.0))
    other = replace(plan, spacing_mm=(2.0, 2.0, 2.0))
    models = [build(plan), build(plan, aggregator="none"), build(other)]
    with torch.no_grad():
        for parameter in models[1].parameters():
            parameter.mul_(0.9)
    networks = [Network(model, p) for model, p in zip(models, (plan, plan, other), strict=True)]
    data = np.random.default_rng(0).normal(0, 1, (16, 18, 12)).astype(np.float32)
    volume = scan_of(data, 2.0)[0]
    alone = []
    for number, network in enumerate(networks):
        file = tmp_path / f"{number}.nii"
        Predictor([network], device="cpu").segment(volume, probabilities=file)
        alone.append(read_probabilities(file).astype(np.float64))
    together = Predictor(networks, device="cpu").segment(volume, probabilities=tmp_path / "all.nii")
    mean = np.mean(alone, axis=0)
    np.testing.assert_allclose(read_probabilities(tmp_path / "all.nii"), mean, atol=1e-6)
    clear = np.sort(mean, axis=0)[-1] - np.sort(mean, axis=0)[-2] > 1e-5
    assert clear.mean() > 0.9
    expected = np.array(plan.label_values)[mean.argmax(axis=0)]
    assert np.array_equal(together.mask.labels[clear], expected[clear])


def test_folds_with_one_encoder_share_its_tokens(make_plan: MakePlan, build: Build) -> None:
    plan = make_plan()
    first, second = build(plan), build(plan)
    with torch.no_grad():
        second.decoder.heads[0].weight.mul_(0.5)  # type: ignore[union-attr, index]
    different = build(plan)
    with torch.no_grad():
        different.encoder.vit.cls_token.add_(1)  # type: ignore[union-attr]
    data = np.random.default_rng(0).normal(0, 1, (16, 18, 12)).astype(np.float32)
    volume = scan_of(data, 2.0)[0]
    predictor = Predictor([Network(model, plan) for model in (first, second, different)], device="cpu")
    calls = []
    for model in (first, different):
        model.encoder.register_forward_hook(lambda m, x, y: calls.append(x[0].shape[2]))  # type: ignore[union-attr]
    assert second.encoder is first.encoder
    assert different.encoder is not first.encoder
    assert predictor.segment(volume).counts["encodings_per_slice"] == 1
    slices_and_columns = 12 * 2  # 12 slices, 2 windows along one axis
    assert sum(calls) - 2 * len(calls) == 2 * slices_and_columns


def test_models_of_an_ensemble_that_do_not_fit(make_plan: MakePlan, build: Build) -> None:
    plans = make_plan(), make_plan(slice_axis="A")
    predictor = Predictor([Network(build(plan), plan) for plan in plans], device="cpu")
    with pytest.raises(ConfigError, match="slice_axis"):
        predict(predictor, np.random.default_rng(0).normal(0, 1, (16, 16, 16)))


def test_probabilities_and_uncertainty(make_plan: MakePlan, build: Build, tmp_path: Path) -> None:
    plan = make_plan(crop_nonzero=True)
    predictor = Predictor.from_model(build(plan), plan, device="cpu")
    data = np.zeros((20, 18, 14), np.float32)
    data[3:, 2:-1, 1:] = np.random.default_rng(0).normal(0, 1, (17, 15, 13))
    affine = np.diag([1.5, -2.0, 2.0, 1.0])
    result = predictor.segment(
        predictor.read(data, affine), probabilities=tmp_path / "p.nii", uncertainty=tmp_path / "u.nii.gz"
    )
    probabilities = read_probabilities(tmp_path / "p.nii")
    assert probabilities.dtype == np.float32
    assert np.array_equal(nibabel.load(tmp_path / "p.nii").affine, affine)
    assert probabilities.shape == (4, *data.shape)
    np.testing.assert_allclose(probabilities.sum(axis=0), 1, atol=1e-5)
    assert (np.array(plan.label_values)[probabilities.argmax(axis=0)] == result.mask.labels).mean() > 0.999
    assert (probabilities[0, :3] == 1).all()
    image = nibabel.load(tmp_path / "u.nii.gz")
    entropy = np.asanyarray(image.dataobj)
    assert np.array_equal(image.affine, affine)
    p = probabilities.astype(np.float64).clip(1e-12)
    np.testing.assert_allclose(entropy, -(p * np.log(p)).sum(axis=0), atol=1e-4)
    assert (entropy[:3] == 0).all()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["p.nii", "u.nii.gz"]


@pytest.mark.parametrize("slice_axis", ["S", "R"])
def test_slices_of_probabilities_lie_close_together(
    slice_axis: str, make_plan: MakePlan, build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever axis of the scan the slices follow: otherwise each would touch every page of the temporary file."""
    memmap, strides = np.memmap, []

    def noted(*args: Any, **kwargs: Any) -> Any:
        array = memmap(*args, **kwargs)
        strides.append(array.strides)
        return array

    monkeypatch.setattr(np, "memmap", noted)
    plan = make_plan(slice_axis=slice_axis)
    predictor = Predictor.from_model(build(plan), plan, device="cpu")
    data = np.random.default_rng(0).normal(0, 1, (16, 17, 18)).astype(np.float32)
    result = predictor.segment(scan_of(data, 2.0)[0], probabilities=tmp_path / "p.nii")
    monkeypatch.undo()
    probabilities = read_probabilities(tmp_path / "p.nii")
    assert (np.array(plan.label_values)[probabilities.argmax(axis=0)] == result.mask.labels).mean() > 0.999
    axis = {"S": 3, "R": 1}[slice_axis]
    others = [stride for number, stride in enumerate(strides[0]) if number not in (0, axis)]
    assert strides[0][axis] > max(others)


@pytest.mark.parametrize("full", [True, False])
def test_a_full_disk_is_an_error_before_anything_is_mapped(
    full: bool, make_plan: MakePlan, build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A page that finds no room when it is written would end the process; a file system may be unable to reserve."""

    def refuse(*_: object) -> None:
        number = errno.ENOSPC if full else errno.EOPNOTSUPP
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "posix_fallocate", refuse, raising=False)
    plan = make_plan()
    predictor = Predictor.from_model(build(plan), plan, device="cpu")
    data = np.random.default_rng(0).normal(0, 1, (16, 16, 16)).astype(np.float32)
    with pytest.raises(OutputError, match="No space left") if full else nullcontext():
        predictor.segment(scan_of(data, 2.0)[0], probabilities=tmp_path / "p.nii")
    assert [path.name for path in tmp_path.iterdir()] == ([] if full else ["p.nii"])


def test_windows_of_air_are_skipped(make_plan: MakePlan, build: Build) -> None:
    """The right half of the scan is air: its windows are skipped and become background; the rest stays the same."""
    plan = make_plan(air_below=-500.0, mirror_axes=(0, 2))
    model = build(plan)
    predictor = Predictor.from_model(model, plan, device="cpu")
    data = np.full((64, 16, 16), -1000.0, np.float32)  # 64 along the columns
    data[:24] = np.random.default_rng(0).normal(0, 100, (24, 16, 16))
    every = predict(predictor, data, tta=True, skip_air=False)
    some = predict(predictor, data, tta=True)
    assert every.counts["windows_skipped"] == 0
    assert some.counts["windows_skipped"] == 7 * 4  # columns begin at 0, 8 ... 48 in LR order; four see no tissue
    assert np.array_equal(some.mask.labels[:24], every.mask.labels[:24])
    assert (some.mask.labels[40:] == 0).all()
    assert some.counts["encodings_per_slice"] < 0.6


def test_air_is_decided_by_the_whole_input_of_a_window(make_plan: MakePlan) -> None:
    """Resampling and neighbouring slices reach beyond the window's own voxels."""
    plan = make_plan(spacing_mm=(3.0, 3.0, 3.0))
    data = np.full((1, 40, 40, 40), -1000, np.int16)
    data[0, 20, 20, 20] = 0
    image = ScanSlabs(prepare_image(Volume(data, Grid((40, 40, 40), np.diag([2.0, 2.0, 2.0, 1.0]))), plan), -500.0)
    whole = image.slab(0, image.shape[0])
    for start in range(0, 24, 2):
        box = ((start, 8, 8), (start + 4, 20, 20))
        d, h, w = (slice(a, b) for a, b in zip(*box, strict=True))
        constant = np.ptp(whole[0, d, h, w]) < 0.01  # rounding
        assert constant or not image.is_air(*box)
    assert image.is_air((0, 0, 0), (4, 12, 12))
    assert not ScanSlabs(image.image).is_air((0, 0, 0), (4, 12, 12))
