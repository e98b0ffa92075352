"""The geometry proof: the same scan, however it is stored, gets the same mask at the same places of the body.

The network is trained (``trained.py``) and the scan was not among its training cases, so the masks that are compared
are real segmentations. Where the values that reach the network are bitwise identical, so must be the masks; where a
header rounds differently, 99.9% of the foreground must agree, over all and for each class.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from nibabel.orientations import apply_orientation, inv_ornt_aff
from numpy.typing import NDArray

import volseg
from tests.made.scan_files import HEADERS, OBLIQUE, STORAGE, tilted, turned, write_scan
from tests.made.trained import LABELS, LAS, PLAN, dice, make_scan
from volseg.geometry.volume import Mask
from volseg.inference.predictor import Predictor

VALUES, TRUTH, GRID = make_scan(5)
FOREGROUND = tuple(label for label in LABELS.values() if label)
EVERY_ORDER = [
    np.array(list(zip(order, flips, strict=True)))
    for order in itertools.permutations(range(3))
    for flips in itertools.product((1, -1), repeat=3)
]


@pytest.fixture(scope="module")
def predictor(trained_model: Path) -> Predictor:
    return volseg.load(trained_model, device="cpu")


@pytest.fixture(scope="module")
def reference(predictor: Predictor, tmp_path_factory: pytest.TempPathFactory) -> Mask:
    """The mask of the scan as it is."""
    return predictor.predict(write_scan(tmp_path_factory.mktemp("reference") / "scan.nii.gz", VALUES))


def overlap(mask: NDArray[Any], expected: NDArray[Any], label: int | None = None) -> float:
    """Voxels with the same label over those that either calls foreground; of one label ``|A & B| / |A | B|``."""
    if label is not None:
        mask, expected = mask == label, expected == label
    either = (mask > 0) | (expected > 0)
    return float((mask == expected)[either].mean())


def assert_same_anatomy(mask: NDArray[Any], expected: NDArray[Any]) -> None:
    assert mask.shape == expected.shape
    shares = [overlap(mask, expected), *(overlap(mask, expected, label) for label in FOREGROUND)]
    assert min(shares) >= 0.999, shares


def test_the_network_really_segments(reference: Mask) -> None:
    """A scan it has not seen; the label values are those of the training data, large and with gaps."""
    assert tuple(np.unique(reference.labels)) == (0, 205, 500, 600)
    assert [dice(reference.labels, TRUTH, label) > 0.75 for label in FOREGROUND] == [True] * 3
    assert not np.allclose(PLAN.spacing_mm, (3.6, 1.2, 1.2))  # restoring interpolates along every axis


def test_the_proof_would_notice(predictor: Predictor, reference: Mask, tmp_path: Path) -> None:
    """A header that tells another orientation or spacing than that of the voxels gives another mask."""
    factors = ((-1, 1, 1), (1, -1, 1), (1, 1, -1), (1.05, 1, 1), (1, 1, 1.05))
    for wrong in [*(np.diag((*factor, 1)) @ LAS for factor in factors), LAS[:, [1, 0, 2, 3]]]:
        mask = predictor.predict(write_scan(tmp_path / "scan.nii.gz", VALUES, wrong))
        assert overlap(mask.labels, reference.labels) < 0.999
    for axis, by in itertools.product(range(3), (1, -1)):
        assert overlap(np.roll(reference.labels, by, axis), reference.labels) < 0.95


def turned_files(folder: Path, affine: NDArray[np.float64], step: int = 1) -> Any:
    """The scan with its axes in every order and direction, its affine following."""
    for number, orientation in enumerate(EVERY_ORDER[::step]):
        moved = affine @ inv_ornt_aff(orientation, VALUES.shape)
        path = folder / f"{number}{'.nii' if number % 2 else '.nii.gz'}"
        yield orientation, moved, write_scan(path, apply_orientation(VALUES, orientation), moved)


@pytest.mark.parametrize(
    ("affine", "tta", "step"),
    [(LAS, False, 1), (turned((25, -20, 30)), False, 3), (turned((40, 35, -50)), False, 5), (LAS, True, 5)],
    ids=["all 48", "oblique", "far oblique", "mirrored copies averaged"],
)
def test_voxel_orders_and_flips(
    affine: NDArray[np.float64], tta: bool, step: int, predictor: Predictor, tmp_path: Path
) -> None:
    reference = predictor.predict(write_scan(tmp_path / "scan.nii", VALUES, affine), tta=tta)
    assert tuple(np.unique(reference.labels)) == (0, *FOREGROUND)
    for orientation, moved, path in turned_files(tmp_path, affine, step):
        mask = predictor.predict(path, tta=tta)
        np.testing.assert_allclose(mask.grid.affine, moved, atol=1e-5)
        assert np.array_equal(mask.labels, apply_orientation(reference.labels, orientation)), orientation


@pytest.mark.parametrize("affine", OBLIQUE.values(), ids=OBLIQUE.keys())
def test_oblique_and_sheared_headers(
    affine: NDArray[np.float64], predictor: Predictor, reference: Mask, tmp_path: Path
) -> None:
    """Voxels untouched, their sizes kept: the same voxels, as long as each axis is nearest to the same direction."""
    mask = predictor.predict(write_scan(tmp_path / "scan.nii.gz", VALUES, affine))
    assert_same_anatomy(mask.labels, reference.labels)
    np.testing.assert_allclose(mask.grid.affine, affine, atol=1e-5)


def test_a_shear_that_makes_voxels_longer_counts_as_longer_voxels(predictor: Predictor, tmp_path: Path) -> None:
    """What preprocessing knows of a grid are its directions and the lengths of its columns, not their angles.

    So a sheared scan is treated as the upright one whose voxels have these lengths: the columns of the tilted gantry
    are 3.76 mm long, although the slices are 3.6 mm apart.
    """
    sheared = tilted(0.3, keep_lengths=False)
    upright = LAS.copy()
    upright[2, 2] = np.hypot(3.6, 0.3 * 3.6)
    masks = [predictor.predict(write_scan(tmp_path / "scan.nii.gz", VALUES, affine)) for affine in (sheared, upright)]
    assert_same_anatomy(masks[0].labels, masks[1].labels)
    np.testing.assert_allclose(masks[0].grid.affine, sheared, atol=1e-5)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("name", [*STORAGE, *HEADERS])
def test_storage_and_headers(name: str, suffix: str, predictor: Predictor, reference: Mask, tmp_path: Path) -> None:
    """The scan's values are such that every one of these types holds them exactly: not one voxel may differ."""
    path = tmp_path / f"scan{suffix}"
    (STORAGE | HEADERS)[name](path, VALUES)
    mask = predictor.predict(path)
    assert np.array_equal(mask.labels, reference.labels)
    if name != "neither, which means LAS":  # its origin is another
        np.testing.assert_allclose(mask.grid.affine, reference.grid.affine, atol=1e-5)
    in_mm = 0.001 if name == "microns" else 1
    np.testing.assert_allclose(mask.grid.affine[:3], in_mm * nibabel.load(path).affine[:3], rtol=1e-12)
