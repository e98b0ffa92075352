from __future__ import annotations

import itertools
import re
import subprocess
import sys

import numpy as np
import pytest

from volseg.geometry.grid import Grid
from volseg.metrics import case_scores
from volseg.report.figures import case_png, draw_case
from volseg.report.planes import CT_WINDOW_HU, CaseViews, largest_error

SHAPE = (12, 20, 16)


def grid_of(codes: str = "RAS") -> Grid:
    """Return a grid with spacings of 1, 1.5 and 2 mm along axes in the direction of the codes."""
    affine = np.zeros((4, 4))
    affine[3, 3] = 1
    for axis, (code, step) in enumerate(zip(codes, (1.0, 1.5, 2.0), strict=True)):
        row = {"R": 0, "L": 0, "A": 1, "P": 1, "S": 2, "I": 2}[code]
        affine[row, axis] = step if code in "RAS" else -step
    return Grid(SHAPE, affine)


def test_planes_follow_the_radiological_convention() -> None:
    """In a RAS volume a voxel at the right, front and top appears on the left, top and top of the slices."""
    labels = np.zeros(SHAPE, np.uint8)
    labels[4:8, 8:12, 6:10] = 1
    labels[11, 19, 15] = 2
    image = np.arange(labels.size).reshape(SHAPE)
    views = CaseViews.of(image, labels, labels, grid_of("RAS"))
    axial, coronal, sagittal = views.planes
    assert [view.name for view in views.planes] == ["axial", "coronal", "sagittal"]
    assert axial.image is not None
    assert axial.image.shape == (20, 12)  # rows front to back, columns right to left
    assert coronal.image is not None
    assert coronal.image.shape == (16, 12)
    assert sagittal.image is not None
    assert sagittal.image.shape == (16, 20)
    value = image[5, :, :].max()
    assert sagittal.image[0, 0] in image[:, 19, 15]  # top left of the sagittal slice: top and front
    assert coronal.image[0, 0] in image[11, :, 15]  # top left of the coronal slice: top and right
    assert axial.image[0, 0] in image[11, 19, :]  # top left of the axial slice: front and right
    assert value <= image.max()
    assert axial.extent_mm == (30.0, 12.0)


@pytest.mark.parametrize("codes", ["LAS", "RIP", "SPL", "AIL"])
def test_every_orientation_gives_the_same_planes(codes: str) -> None:
    rng = np.random.default_rng(0)
    from volseg.geometry.ops import reorient

    image, labels = rng.random(SHAPE), np.zeros(SHAPE, np.uint8)
    labels[4:8, 8:12, 6:10] = 1
    pred = np.roll(labels, 1, 0)
    grid = grid_of("RAS")
    expected = CaseViews.of(image, labels, pred, grid)
    turned = [reorient(volume, grid, codes) for volume in (image, labels, pred)]
    views = CaseViews.of(turned[0][0], turned[1][0], turned[2][0], turned[0][1])
    for one, other in zip(expected.planes, views.planes, strict=True):
        assert one.extent_mm == pytest.approx(other.extent_mm)
        assert np.array_equal(one.reference, other.reference)


def test_the_slices_go_through_the_largest_error() -> None:
    ref, pred = np.zeros((30, 40, 50), np.uint8), np.zeros((30, 40, 50), np.uint8)
    ref[5:20, 5:20, 5:20] = pred[5:20, 5:20, 5:20] = 1
    pred[6, 7, 8] = 0
    pred[24:28, 30:34, 40:44] = 1
    d, h, w = largest_error(ref, pred, (1.0, 1.0, 1.0))
    assert 24 <= d < 28
    assert 30 <= h < 34
    assert 40 <= w < 44
    d, h, w = largest_error(ref, ref, (1.0, 1.0, 1.0))
    assert ref[d, h, w]
    assert largest_error(ref * 0, ref * 0, (1.0, 1.0, 1.0)) == (15, 20, 25)


def test_grey_value_windows_of_ct_and_mri() -> None:
    image = np.zeros(SHAPE)
    image[2:] = np.linspace(10, 110, image[2:].size).reshape(image[2:].shape)
    labels = np.zeros(SHAPE, np.uint8)
    views = CaseViews.of(image, labels, labels, grid_of())
    assert views.window("ct") == CT_WINDOW_HU
    low, high = views.window("mri")
    assert low == pytest.approx(11, abs=0.1)
    assert high == pytest.approx(109.5, abs=0.1)


@pytest.mark.parametrize("kind", ["image", "no image", "constant", "empty prediction", "many classes"])
def test_every_kind_of_case_is_drawn(kind: str) -> None:
    rng = np.random.default_rng(0)
    labels = np.zeros(SHAPE, np.uint8)
    labels[4:8, 8:12, 6:10] = 1
    classes = {"$x$ <b>": (1,)}
    if kind == "many classes":
        labels = rng.integers(0, 20, SHAPE).astype(np.uint8)
        classes = {f"a class with a rather long name {value}": (value,) for value in range(1, 20)}
    pred = labels * 0 if kind == "empty prediction" else np.roll(labels, 1, 1)
    image = None if kind == "no image" else np.ones(SHAPE) if kind == "constant" else rng.random(SHAPE)
    grid = grid_of("LAS")
    scores = case_scores(pred, labels, grid.spacing_mm, {name: values[0] for name, values in classes.items()})
    png = case_png(CaseViews.of(image, labels, pred, grid), classes, scores, modality="mri", title="$y$")
    assert png.startswith(b"\x89PNG")
    assert len(png) > 10_000


LONG_NAMES = ("W" * 40, "iliopsoas_right_and_a_very_long_remark" * 3)


@pytest.mark.parametrize("name", ["liver", "inferior_vena_cava", *LONG_NAMES])
def test_class_names_end_before_the_numbers(name: str) -> None:
    labels = np.zeros(SHAPE, np.uint8)
    labels[4:8, 8:12, 6:10] = 1
    grid = grid_of("RAS")
    scores = case_scores(np.roll(labels, 1, 1), labels, grid.spacing_mm, {name: 1})
    figure = draw_case(CaseViews.of(None, labels, labels, grid), {name: (1,)}, scores, modality="mri")
    texts = figure.axes[-1].texts
    drawn = next(text for text in texts if text.get_text().rstrip("…") and name.startswith(text.get_text().rstrip("…")))
    numbers = [t.get_window_extent() for t in texts if re.fullmatch(r"\d+\.\d+", t.get_text())]
    assert len(numbers) == 3
    assert drawn.get_window_extent().x1 < min(number.x0 for number in numbers)
    assert (drawn.get_text() == name) == (name not in LONG_NAMES)
    boxes = sorted(numbers, key=lambda number: number.x0)
    assert all(left.x1 < right.x0 for left, right in itertools.pairwise(boxes))


def test_drawing_does_not_import_pyplot() -> None:
    """pyplot selects a desktop backend, so a new process checks that drawing works without it."""
    script = """
import sys
import numpy as np
from volseg.geometry.grid import Grid
from volseg.metrics import case_scores
from volseg.report.figures import case_png, draw_case
from volseg.report.planes import CaseViews

labels = np.zeros((12, 20, 16), np.uint8)
labels[4:8, 8:12, 6:10] = 1
views = CaseViews.of(labels * 1.0, labels, labels, Grid(labels.shape, np.eye(4)))
scores = case_scores(labels, labels, (1, 1, 1), {"liver": 1})
case_png(views, {"liver": (1,)}, scores, modality="mri", title="case")
print("matplotlib.figure" in sys.modules, "matplotlib.pyplot" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "False"]
