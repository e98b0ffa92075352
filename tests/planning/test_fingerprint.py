from __future__ import annotations

import itertools
import time
from pathlib import Path

import numpy as np
import pytest

from tests.made.allocations import little_memory
from tests.made.datasets import save_nifti, write_dataset
from volseg.errors import DataError
from volseg.geometry import ops
from volseg.geometry.grid import Grid
from volseg.io.datasets import read_dataset
from volseg.planning.derive import make_plan
from volseg.planning.fingerprint import (
    SAMPLES_PER_CASE,
    Fingerprint,
    fingerprint,
    labels_in_air,
    midline,
    spread,
    survey,
)

RAS = np.diag([1.0, 2.0, 3.0, 1.0])


def made_case() -> tuple[np.ndarray, np.ndarray]:
    """Image and label on a 10 x 12 x 8 RAS grid of 1 x 2 x 3 mm; zeros in the first two planes along R."""
    image = np.arange(10 * 12 * 8, dtype=np.int16).reshape(10, 12, 8) + 1
    image[:2] = 0
    label = np.zeros((10, 12, 8), dtype=np.uint8)
    label[3:7, 2:5, 1:3] = 1
    label[9, 11, 7] = 1  # a second, smaller piece
    label[8, 4:8, 5] = 2
    return image, label


def test_a_case_by_hand(tmp_path: Path) -> None:
    image, label = made_case()
    measured = fingerprint(read_dataset(write_dataset(tmp_path, [image], [label], affine=RAS)))
    only = measured.cases[0]
    assert (only.id, only.shape) == ("c0", (10, 12, 8))
    assert only.spacing_mm == (1.0, 2.0, 3.0)
    assert only.nonzero_shape == (8, 12, 8)
    organ, lesion = only.classes["organ"], only.classes["lesion"]
    assert organ.extent_mm == (4.0, 6.0, 6.0)  # the larger piece
    assert organ.centroid_mm == pytest.approx(np.argwhere(label == 1).mean(0) * [1, 2, 3], abs=1e-3)
    assert lesion.extent_mm == (1.0, 8.0, 3.0)
    assert (organ.volume_ml, lesion.volume_ml) == (0.15, 0.024)  # 25 and 4 voxels of 6 mm3
    values = image[label > 0]
    statistics = measured.intensity[0]
    assert statistics.mean == pytest.approx(values.mean())
    assert statistics.std == pytest.approx(values.std())
    assert statistics.percentile_99_5 == pytest.approx(np.percentile(values, 99.5))


@pytest.mark.parametrize("codes", ["LPS", "SPL", "AIR", "PSL"])
def test_the_order_of_the_file_axes_does_not_matter(codes: str, tmp_path: Path) -> None:
    image, label = made_case()
    plain = fingerprint(read_dataset(write_dataset(tmp_path / "plain", [image], [label], affine=RAS)))
    turned, grid = ops.reorient(np.stack([image, label.astype(np.int16)]), Grid(image.shape, RAS), codes)
    root = write_dataset(tmp_path / "turned", [turned[0]], [turned[1]], affine=grid.affine)
    other = fingerprint(read_dataset(root))
    assert other.cases[0].classes == plain.cases[0].classes
    assert other.cases[0].shape == plain.cases[0].shape
    assert make_plan(other) == make_plan(plain)


def test_progress_is_told(tmp_path: Path) -> None:
    image, label = made_case()
    told: list[tuple[int, int]] = []
    fingerprint(read_dataset(write_dataset(tmp_path, [image] * 3, [label] * 3)), lambda *at: told.append(at))
    assert told == [(1, 3), (2, 3), (3, 3)]


def test_all_bad_cases_are_named_at_once(tmp_path: Path) -> None:
    image, label = made_case()
    root = write_dataset(tmp_path, [image.astype(np.float32)] * 5, [label] * 5)
    not_a_number = image.astype(np.float32)
    not_a_number[4, 4, 4] = np.nan
    save_nifti(root / "imagesTr/c1.nii.gz", not_a_number)
    unknown = label.copy()
    unknown[0, 0, 0] = 9
    save_nifti(root / "labelsTr/c2.nii.gz", unknown)
    save_nifti(root / "labelsTr/c3.nii.gz", label, np.diag([1.0, 1.0, 1.1, 1.0]))
    truncated = root / "imagesTr/c4.nii.gz"
    truncated.write_bytes(truncated.read_bytes()[:200])
    with pytest.raises(DataError) as caught:
        fingerprint(read_dataset(root))
    message = str(caught.value)
    assert message.startswith(f"the data set {root} has 4 errors")
    for file, reason in [
        ("imagesTr/c1.nii.gz", "found: NaN"),
        ("labelsTr/c2.nii.gz", "found: 9 (1 voxel); expected: 0, 1, 2"),
        ("labelsTr/c3.nii.gz", "found: 10 x 12 x 8 voxels of 1 x 1 x 1.1 mm"),
        ("imagesTr/c4.nii.gz", "the file is"),
    ]:
        assert f"  {root / file}: {reason}" in message
    assert "c0.nii.gz: " not in message


def test_a_wrong_number_of_channels_is_named(tmp_path: Path) -> None:
    image, label = made_case()
    root = write_dataset(tmp_path, [np.stack([image, image], axis=-1)], [label])
    with pytest.raises(DataError, match="wrong number of channels"):
        fingerprint(read_dataset(root))


def test_a_set_without_foreground_is_refused(tmp_path: Path) -> None:
    image, label = made_case()
    with pytest.raises(DataError, match="no label holds a foreground voxel"):
        fingerprint(read_dataset(write_dataset(tmp_path, [image], [label * 0])))


def test_a_case_without_foreground_is_fine_beside_others(tmp_path: Path) -> None:
    image, label = made_case()
    measured = fingerprint(read_dataset(write_dataset(tmp_path, [image + 1, image], [label * 0, label])))
    assert measured.cases[0].classes == {}
    assert make_plan(measured).labels == {"background": 0, "organ": 1, "lesion": 2}


def test_the_ignored_label_is_not_measured(tmp_path: Path) -> None:
    image, label = made_case()
    names = ("background", "organ", "ignore")
    measured = fingerprint(read_dataset(write_dataset(tmp_path, [image], [label], names=names)))
    assert measured.label_map.ignore_label == 2
    assert set(measured.cases[0].classes) == {"organ"}
    assert measured.intensity[0].mean == pytest.approx(image[label == 1].mean())


def test_spread_is_even_and_bounded() -> None:
    assert spread(0, 10).tolist() == []
    assert spread(4, 10).tolist() == [0, 1, 2, 3]
    chosen = spread(100_001, SAMPLES_PER_CASE)
    assert len(np.unique(chosen)) == SAMPLES_PER_CASE
    assert (chosen[0], chosen[-1]) == (0, 100_000)


@pytest.mark.data
def test_the_hippocampus_plan(data_root: Path) -> None:
    begun_s = time.perf_counter()
    measured = fingerprint(read_dataset(data_root / "Task04_Hippocampus"))
    assert time.perf_counter() - begun_s < 30
    plan = make_plan(measured)
    assert plan.spacing_mm == (1.0, 1.0, 1.0)
    assert (plan.orientation, plan.patch_size, plan.token_stride) == ("SPL", (40, 56, 40), 8)
    assert plan.mirror_axes == (2,)  # left-right; posterior lies behind and above anterior
    assert plan.intensity[0].rule == "zscore"
    assert not plan.crop_nonzero


@pytest.fixture(scope="module")
def chaos(data_root: Path) -> Fingerprint:
    return fingerprint(read_dataset(data_root / "CHAOS_MR"))


@pytest.mark.data
def test_the_chaos_plan(chaos: Fingerprint) -> None:
    plan = make_plan(chaos)
    assert plan.spacing_mm == pytest.approx((7.7, 1.25, 1.25))
    assert (plan.orientation, plan.patch_size, plan.token_stride) == ("SPL", (20, 160, 160), 16)
    assert plan.mirror_axes == ()
    assert plan.nearest_depth
    assert plan.rotate_in_plane_only


@pytest.mark.parametrize("seed", range(6))
def test_labels_in_air_by_brute_force(seed: int) -> None:
    """Every cube of 20 mm that lies in the image is tried."""
    rng = np.random.default_rng(seed)
    spacing = np.array([(4.0, 5.0, 6.0), (6.0, 4.5, 5.0)][seed % 2])
    size = [int(20 // mm) for mm in spacing]
    tissue = rng.random((14, 13, 12)) < 0.02
    data = np.where(tissue, 40, -1000).astype(np.int16)
    labelled = np.zeros(data.shape, bool)
    labelled[tuple(rng.integers(0, data.shape))] = True
    starts = itertools.product(*(range(n - s + 1) for n, s in zip(data.shape, size, strict=True)))
    cubes = (tuple(slice(a, a + s) for a, s in zip(start, size, strict=True)) for start in starts)
    expected = any(labelled[cube].any() and not tissue[cube].any() for cube in cubes)
    assert labels_in_air(data[None], labelled, spacing) == expected


def test_air_is_looked_for_in_ct_only(tmp_path: Path) -> None:
    """An organ of soft tissue lies in no air, a labelled lung does; an MRI has no such threshold."""
    label = np.zeros((30, 30, 30), np.uint8)
    label[10:20, 10:20, 10:20] = 1
    affine = np.diag([3.0, 3.0, 3.0, 1.0])
    plans = {}
    for name, value, channel in (("organ", 40, "CT"), ("lung", -850, "CT"), ("mri", 40, "MRI")):
        noise = np.random.default_rng(0).integers(-5, 5, label.shape)
        image = (np.where(label, value, -1000) + noise).astype(np.int16)
        root = write_dataset(tmp_path / name, [image], [label], affine=affine, modality=channel)
        plans[name] = make_plan(fingerprint(read_dataset(root)))
    assert {name: plan.air_below for name, plan in plans.items()} == {"organ": -500.0, "lung": None, "mri": None}


def test_a_cube_of_air_larger_than_the_image_costs_nothing() -> None:
    """A cube of 20 mm would have 20 million voxels along the last axis."""
    data, labelled = np.full((1, 40, 40, 40), -1000.0), np.zeros((40, 40, 40), bool)
    labelled[20, 20, 20] = True
    with little_memory():
        assert not labels_in_air(data, labelled, np.array([1.0, 1.0, 1e-6]))
        assert labels_in_air(data, labelled, np.array([1.0, 1.0, 0.5]))  # exactly as large
        assert not labels_in_air(data, labelled, np.array([1.0, 1.0, 0.48]))


def test_the_middle_of_the_body_by_hand() -> None:
    """A body in planes 4 to 8 of 12, a bright table on one side, and air with noise around."""
    image = np.random.default_rng(0).normal(-1000, 20, (12, 20, 20))
    image[4:9, 5:15, 5:15] = 40
    image[0, :2, :2] = 3000
    assert midline(image) == 6
    assert midline(image.astype(np.int16)) == 6
    assert midline(np.zeros((12, 20, 20))) == 5.5


def plain_folder(root: Path, images: list[np.ndarray]) -> Path:
    """Write a folder without a description of the modality."""
    label = np.zeros(images[0].shape, np.uint8)
    label[4:7, 4:7, 4:7] = 1
    for number, image in enumerate(images):
        save_nifti(root / "images" / f"c{number}.nii.gz", image.astype(np.int16))
        save_nifti(root / "labels" / f"c{number}.nii.gz", label)
    return root


def test_all_cases_decide_what_an_unnamed_modality_is(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Neither a first CT that was cropped to the body, nor an MRI with one negative voxel."""
    rng = np.random.default_rng(0)
    ct = [rng.normal(40, 20, (10, 11, 12)) for _ in range(5)]
    for image in ct[1:]:
        image[0] = -1000
    found = survey(read_dataset(plain_folder(tmp_path / "ct", ct)))
    measured = found.checked()
    assert (measured.modality, measured.channels) == ("ct", ("CT",))
    assert measured.channel_source == "not named; 4 of 5 cases have values below -200, as only CT has"
    assert [case.labels_in_air for case in measured.cases] == [False] * 5
    assert [finding.message for finding in found.findings if finding.kind == "modality"] == ["do not look like CT: c0"]
    mri = [rng.normal(400, 20, (10, 11, 12)) for _ in range(5)]
    mri[0][0, 0, 0] = -300
    with caplog.at_level("INFO"):
        found = survey(read_dataset(plain_folder(tmp_path / "mri", mri)))
    assert (found.checked().modality, found.checked().channels) == ("mri", ("MRI",))
    assert "taken for MRI" in caplog.text
    assert "modality" not in {finding.kind for finding in found.findings}


def test_the_share_of_a_label_outside_the_nonzero_voxels(tmp_path: Path) -> None:
    """Nonzero voxels fill 2 to 7 of 10 along each axis; of 4 x 2 x 2 labelled voxels, 0 to 1 lie before them."""
    image, label = np.zeros((10, 10, 10), np.int16), np.zeros((10, 10, 10), np.uint8)
    image[2:8, 2:8, 2:8] = np.arange(216).reshape(6, 6, 6) + 1
    label[0:4, 4:6, 4:6] = 1
    label[5:7, 5:7, 5:7] = 2
    save_nifti(tmp_path / "images" / "a.nii.gz", image)
    save_nifti(tmp_path / "labels" / "a.nii.gz", label)
    classes = fingerprint(read_dataset(tmp_path)).cases[0].classes
    assert {name: shape.outside_nonzero for name, shape in classes.items()} == {"label_1": 0.5, "label_2": 0.0}


def test_a_ct_that_is_not_called_ct_is_named(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    images = [rng.normal(40, 20, (10, 11, 12)) for _ in range(2)]
    for image in images:
        image[0] = -1000
    root = plain_folder(tmp_path, images)
    (root / "dataset.json").write_text('{"modality": {"0": "ct scan"}, "labels": {"background": 0, "a": 1}}')
    found = survey(read_dataset(root))
    assert found.checked().modality == "mri"
    assert [finding.message for finding in found.findings if finding.kind == "modality"] == [
        'channel ct scan has the values of CT (below -200); only "CT" is normalised as CT'
    ]
    (root / "dataset.json").write_text('{"modality": {}, "labels": {"background": 0, "a": 1}}')
    assert fingerprint(read_dataset(root)).modality == "ct"
