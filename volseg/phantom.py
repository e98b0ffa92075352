"""Synthetic abdominal CT scans with known labels, for the demo and the tests.

Every case has its own anatomy (position, size and smooth deformation of each organ, contrast phase), shape, spacing
and voxel orientation; the second is oblique. Space is RAS+ in millimetres from the middle of the abdomen, so the
liver and the right kidney lie at positive x.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from scipy.spatial.transform import Rotation

from volseg.errors import OutputError
from volseg.geometry import ops
from volseg.geometry.grid import Grid
from volseg.io.json_files import read_json, write_json

logger = logging.getLogger(__name__)

NAME = "Phantom"
"""Name of the data set."""

AIR_HU = -1000.0
NOISE_HU = 20.0
TEXTURE_HU = 5.0
BIAS_FRACTION = 0.02
"""Largest relative error of the smooth bias (cupping), on the scale where air is 0."""
DEFORMATION_MM = 4.0
SHIFT_MM = 4.0
"""Standard deviation of each organ's position."""
ORIENTATIONS = ("LPS", "RAS", "ASL", "LAS", "SPR", "PIR")
OBLIQUE_CASE = 1
SUBSLICES = (-0.25, 0.25)
"""A thick slice averages the anatomy at these fractions of its thickness."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Ellipsoid:
    """Centre and radii (x, y, z), mm; an infinite radius makes a cylinder."""

    center_mm: tuple[float, float, float]
    radii_mm: tuple[float, float, float]


@dataclass(frozen=True)
class Tissue:
    """A union of ellipsoids with one intensity; tissues later in the list lie on top.

    Attributes:
        name: Name; its label's name if it is labelled.
        pieces: Shape.
        plain_hu: Intensity without contrast agent.
        contrast_hu: What contrast agent adds, in a typical case.
        labelled: Whether it is one of the classes.
    """

    name: str
    pieces: tuple[Ellipsoid, ...]
    plain_hu: float
    contrast_hu: float = 0.0
    labelled: bool = False


INF = float("inf")
ANATOMY = (
    Tissue("skin and fat", (Ellipsoid((0, 0, 0), (148, 104, INF)),), -90),
    Tissue("muscle", (Ellipsoid((0, 0, 0), (132, 90, INF)),), 50, 10),
    Tissue("fat", (Ellipsoid((0, 4, 0), (121, 77, INF)),), -95),
    Tissue("psoas", (Ellipsoid((36, -50, -60), (17, 17, 60)), Ellipsoid((-36, -50, -60), (17, 17, 60))), 50, 10),
    Tissue("lungs", (Ellipsoid((70, -12, 128), (55, 66, 50)), Ellipsoid((-70, -12, 128), (55, 66, 50))), -850),
    Tissue("bowel", (Ellipsoid((30, 30, -40), (30, 26, 24)), Ellipsoid((-42, 26, -48), (34, 26, 22))), 30, 10),
    Tissue("stomach", (Ellipsoid((-48, 38, 40), (34, 30, 34)),), 40),
    Tissue("gas", (Ellipsoid((-48, 54, 42), (20, 12, 20)),), -900),
    Tissue("liver", (Ellipsoid((66, 8, 52), (52, 62, 48)), Ellipsoid((10, 40, 58), (46, 30, 30))), 58, 52, True),
    Tissue("spleen", (Ellipsoid((-88, -26, 52), (26, 36, 38)),), 50, 80, True),
    Tissue("right_kidney", (Ellipsoid((66, -44, -14), (24, 23, 46)),), 35, 145, True),
    Tissue("left_kidney", (Ellipsoid((-66, -44, -4), (24, 23, 46)),), 35, 145, True),
    Tissue("aorta", (Ellipsoid((-12, -29, 0), (13, 13, INF)),), 40, 180, True),
    Tissue("spine", (Ellipsoid((0, -64, 0), (21, 19, INF)), Ellipsoid((0, -86, 0), (8, 12, INF))), 300, labelled=True),
    Tissue("bladder", (Ellipsoid((0, 22, -80), (36, 30, 26)),), 8, labelled=True),
)
LABELS = {"background": 0} | {
    name: value for value, name in enumerate((tissue.name for tissue in ANATOMY if tissue.labelled), start=1)
}


def write_phantoms(folder: str | Path, count: int, seed: int = 0, *, count_test: int = 0) -> Path:
    """Write a labelled CT data set in the layout of the Decathlon.

    Args:
        folder: Its root; created if it is missing. Phantoms of an earlier call are replaced.
        count: Training cases (``imagesTr``, ``labelsTr``).
        seed: Case ``i`` depends on (seed, i) alone.
        count_test: Held-out cases (``imagesTs``, ``labelsTs``), numbered on.

    Returns:
        ``folder``.

    Raises:
        OutputError: The folder cannot be written to, or holds another data set.
    """
    root = Path(folder)
    _check_own(root / "dataset.json")
    parts = ["Tr"] * count + ["Ts"] * count_test
    names = [
        [f"{kind}{part}/phantom_{index:03d}.nii.gz" for kind in ("images", "labels")]
        for index, part in enumerate(parts)
    ]
    listing: dict[str, list[Any]] = {
        "training": [{"image": f"./{image}", "label": f"./{label}"} for image, label in names[:count]],
        "test": [f"./{image}" for image, _ in names[count:]],
    }
    write_json(root / "dataset.json", _description(count, count_test) | listing)  # first: it says whose the folder is
    try:
        for index, (image_name, label_name) in enumerate(names):
            image, label, grid = make_phantom(index, seed)
            _save(root / image_name, image, grid)
            _save(root / label_name, label, grid)
            logger.info("%s: %s", image_name, grid.describe())
    except OSError as error:
        found, hint = error.strerror or error, "choose another folder"
        raise OutputError("the phantoms cannot be written", file=root, found=found, hint=hint) from error
    return root


def make_phantom(index: int, seed: int = 0) -> tuple[NDArray[np.int16], NDArray[np.uint8], Grid]:
    """Generate one case.

    Args:
        index: Number of the case; gives its orientation, and (with ``seed``) everything that is random.
        seed: Seed of the data set.

    Returns:
        Image in HU and labels, both (D, H, W) in the order of the file's axes, and their grid.
    """
    rng = np.random.default_rng([seed, index])
    grid = _draw_grid(rng, oblique=index == OBLIQUE_CASE)
    tissues = [_vary(tissue, rng) for tissue in ANATOMY]
    waves = _draw_waves(rng)
    stretch = rng.uniform(0.92, 1.08, 3)
    hu, shares = _render(grid, tissues, lambda points: (points + _smooth(points, waves)) / stretch)
    image = _acquire(hu, rng).astype(np.int16)
    label = _label(shares)
    codes = ORIENTATIONS[index % len(ORIENTATIONS)]
    turned, turned_grid = ops.reorient(np.stack([image, label]), grid, codes)
    return turned[0], turned[1].astype(np.uint8), turned_grid


def _draw_grid(rng: np.random.Generator, oblique: bool) -> Grid:
    """A grid in RAS order, centred near the middle: thick slices along S, about 24 x 44 x 57 voxels."""
    in_plane = rng.uniform(5.6, 6.0)
    spacing = np.array([in_plane, in_plane, rng.uniform(8.6, 9.6)])
    shape = (int(rng.integers(55, 61)), int(rng.integers(41, 47)), int(rng.integers(22, 26)))
    angles = rng.uniform(6, 12, 3) * rng.choice([-1, 1], 3) if oblique else np.zeros(3)
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", angles, degrees=True).as_matrix() * spacing
    affine[:3, 3] = rng.normal(0, 4, 3) - affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    return Grid(shape, affine)


def _vary(tissue: Tissue, rng: np.random.Generator) -> Tissue:
    """The same tissue, moved, resized and enhanced a little differently; the body's layers stay in place."""
    movable = tissue.name not in ("skin and fat", "muscle", "fat")
    shift = rng.normal(0, SHIFT_MM, 3) * movable
    size = rng.uniform(0.9, 1.1, 3) if movable else np.ones(3)
    pieces = tuple(
        Ellipsoid(_triple(np.add(piece.center_mm, shift)), _triple(np.multiply(piece.radii_mm, size)))
        for piece in tissue.pieces
    )
    plain = tissue.plain_hu + rng.normal(0, 4)
    return Tissue(tissue.name, pieces, plain, tissue.contrast_hu * rng.uniform(0.8, 1.2), tissue.labelled)


def _draw_waves(rng: np.random.Generator) -> list[tuple[Floats, Floats, float]]:
    """Amplitude (3,), wave vector (3,) and phase of the waves that bend the anatomy."""
    waves = []
    for _ in range(4):
        direction = rng.normal(size=3)
        vector = direction / np.linalg.norm(direction) * 2 * np.pi / rng.uniform(140, 280)
        waves.append((rng.normal(0, DEFORMATION_MM / 2, 3), vector, float(rng.uniform(0, 2 * np.pi))))
    return waves


def _smooth(points: Floats, waves: Sequence[tuple[Floats, Floats, float]]) -> Floats:
    """Displacement (..., 3) of points (..., 3), mm."""
    return np.asarray(sum(np.sin(points @ vector + phase)[..., None] * size for size, vector, phase in waves))


def _render(grid: Grid, tissues: Sequence[Tissue], bend: Callable[[Floats], Floats]) -> tuple[Floats, Floats]:
    """Average the anatomy over the slice thickness.

    Returns:
        HU (D, H, W), and the share of each voxel that each labelled tissue fills (classes, D, H, W).
    """
    index = np.stack(np.meshgrid(*(np.arange(size) for size in grid.shape), indexing="ij"), axis=-1)
    layers = [
        _paint(bend(grid.to_mm(index + np.array((0, 0, part)))), tissues, grid.spacing_mm[0]) for part in SUBSLICES
    ]
    return np.mean([hu for hu, _ in layers], axis=0), np.mean([shares for _, shares in layers], axis=0)


def _paint(points: Floats, tissues: Sequence[Tissue], voxel_mm: float) -> tuple[Floats, Floats]:
    """HU and shares at points (D, H, W, 3); each tissue covers what was painted before it."""
    hu = np.full(points.shape[:-1], AIR_HU)
    shares = np.zeros((sum(tissue.labelled for tissue in tissues), *hu.shape))
    place = 0
    for tissue in tissues:
        cover = np.max([_cover(points, piece, voxel_mm) for piece in tissue.pieces], axis=0)
        hu += cover * (tissue.plain_hu + tissue.contrast_hu - hu)
        shares *= 1 - cover
        if tissue.labelled:
            shares[place] += cover
            place += 1
    return hu, shares


def _cover(points: Floats, piece: Ellipsoid, voxel_mm: float) -> Floats:
    """Share of a voxel inside the ellipsoid: a ramp one voxel wide over the (first-order) distance to its surface."""
    offset = (points - piece.center_mm) / piece.radii_mm
    squared = offset**2
    radius = np.sqrt(squared.sum(axis=-1))
    slope = np.sqrt(squared @ np.power(piece.radii_mm, -2.0))  # radius * |gradient of radius|
    distance_mm = (radius - 1) * radius / np.maximum(slope, 1e-9)
    return np.asarray(np.clip(0.5 - distance_mm / voxel_mm, 0, 1))


def _acquire(hu: Floats, rng: np.random.Generator) -> Floats:
    """Add the organs' texture, the scanner's bias and noise, and rounds to whole HU."""
    texture = gaussian_filter(rng.normal(size=hu.shape), 1.5)
    tissue = (hu > -200) * TEXTURE_HU / texture.std()
    bias = gaussian_filter(rng.normal(size=hu.shape), [size / 4 for size in hu.shape])
    scale = 1 + BIAS_FRACTION * bias / np.abs(bias).max()
    noisy = (hu - AIR_HU) * scale + AIR_HU + texture * tissue + rng.normal(0, NOISE_HU, hu.shape)
    return np.asarray(np.clip(noisy, -1024, 3071).round())


def _label(shares: Floats) -> NDArray[np.int16]:
    """The labelled tissue that fills at least half of the voxel, or background (0)."""
    return np.where(shares.max(axis=0) >= 0.5, shares.argmax(axis=0) + 1, 0).astype(np.int16)


def _triple(values: Floats) -> tuple[float, float, float]:
    x, y, z = (float(value) for value in values)
    return x, y, z


def _check_own(description: Path) -> None:
    """Check that a folder holds no data set, or phantoms.

    Raises:
        OutputError: It holds another data set, whose ``dataset.json`` would be replaced.
    """
    scans = [folder for folder in ("imagesTr", "labelsTr") if (description.parent / folder).exists()]
    if scans and not description.exists():
        found, hint = f"{scans[0]} without dataset.json", "choose another folder"
        raise OutputError("the folder holds other scans", file=description.parent, found=found, hint=hint)
    if description.exists():
        content = read_json(description, "dataset", OutputError)
        name = content.get("name") if isinstance(content, dict) else None
        if name != NAME:
            hint = "choose another folder"
            raise OutputError("the folder holds another data set", file=description, found=name, hint=hint)


def _description(count: int, count_test: int) -> dict[str, Any]:
    return {
        "name": NAME,
        "description": "Made-up CT abdomens with exact labels",
        "licence": "Apache-2.0",
        "tensorImageSize": "3D",
        "modality": {"0": "CT"},
        "labels": {str(value): name for name, value in LABELS.items()},
        "numTraining": count,
        "numTest": count_test,
    }


def _save(path: Path, array: NDArray[Any], grid: Grid) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    file = nibabel.Nifti1Image(array, grid.affine)
    file.set_sform(grid.affine, code="scanner")
    file.set_qform(grid.affine, code="scanner")
    file.header.set_xyzt_units("mm")
    nibabel.save(file, path)
