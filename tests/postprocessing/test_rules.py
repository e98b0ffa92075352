"""Cleaning masks: what goes, what stays, in which order, and how much memory that takes."""

from __future__ import annotations

import itertools
import tracemalloc
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from volseg.config.load import load_config
from volseg.config.schema import PostprocessConfig
from volseg.errors import ConfigError
from volseg.geometry.grid import Grid
from volseg.geometry.volume import Mask
from volseg.io.labels import make_label_map
from volseg.postprocessing import components as components_module
from volseg.postprocessing.components import find_components
from volseg.postprocessing.rules import Postprocessing, fill_holes, remove_components

LABELS = {"background": 0, "liver": 205, "tumour": 500}
CLASSES = make_label_map(LABELS)
AFFINE = np.diag([10.0, 5.0, 2.0, 1.0])  # 0.1 ml a voxel


def mask_of(labels: NDArray[Any]) -> Mask:
    return Mask(labels, Grid(labels.shape, AFFINE))


def settings(**values: Any) -> Postprocessing:
    return Postprocessing.from_config(PostprocessConfig(**values), CLASSES)


def islands() -> NDArray[np.uint16]:
    """Liver: 8 voxels, 3 voxels and 1; tumour: 2 and 4."""
    labels = np.zeros((6, 8, 10), np.uint16)
    labels[1:3, 1:3, 1:3] = 205
    labels[5, 0:3, 0] = 205
    labels[0, 7, 9] = 205
    labels[3, 5, 1:3] = 500
    labels[3, 7, 4:8] = 500
    return labels


def test_largest_component() -> None:
    before = islands()
    mask, removed = settings(largest_component=["liver"]).apply(mask_of(before), LABELS)
    expected = islands()
    expected[5, 0:3, 0] = expected[0, 7, 9] = 0
    assert np.array_equal(mask.labels, expected)
    assert mask.labels.dtype == np.uint16
    assert np.array_equal(before, islands())  # the mask that was handed over is left as it is
    assert removed == [{"label": "liver", "step": "largest_component", "components": 2, "voxels": 4, "ml": 0.4}]


def test_all_means_each_class_by_itself() -> None:
    mask, removed = settings(largest_component="all").apply(mask_of(islands()), LABELS)
    assert [np.count_nonzero(mask.labels == value) for value in (205, 500)] == [8, 4]
    assert [entry["label"] for entry in removed] == ["liver", "tumour"]


def test_minimum_volume() -> None:
    """0.3 ml is three voxels: a component of exactly that stays."""
    mask, removed = settings(min_volume_ml={"liver": 0.3}).apply(mask_of(islands()), LABELS)
    expected = islands()
    expected[0, 7, 9] = 0
    assert np.array_equal(mask.labels, expected)
    assert removed == [{"label": "liver", "step": "min_volume_ml", "components": 1, "voxels": 1, "ml": 0.1}]
    mask, removed = settings(min_volume_ml=0.81).apply(mask_of(islands()), LABELS)
    assert not mask.labels.any()
    assert [entry["components"] for entry in removed] == [3, 2]


def test_rounding_does_not_remove_what_has_exactly_the_minimum() -> None:
    """Voxels of 0.343 mm3: as floats, 0.001029 ml are a little more than three of them."""
    mask = Mask(islands(), Grid((6, 8, 10), np.diag([0.7, 0.7, 0.7, 1.0])))
    _, removed = settings(min_volume_ml={"liver": 0.001029}).apply(mask, LABELS)
    assert [entry["voxels"] for entry in removed] == [1]


def test_the_volume_of_sheared_voxels() -> None:
    """The determinant counts, not the product of the spacings: here 0.1 ml although the columns are longer."""
    affine = AFFINE.copy()
    affine[0, 1] = 4.0
    mask = Mask(islands(), Grid((6, 8, 10), affine))
    _, removed = settings(min_volume_ml=0.3).apply(mask, LABELS)
    assert [entry["ml"] for entry in removed] == [0.1, 0.2]


def test_the_largest_goes_too_if_it_is_small() -> None:
    mask, removed = settings(largest_component="all", min_volume_ml={"tumour": 0.5}).apply(mask_of(islands()), LABELS)
    assert set(np.unique(mask.labels)) == {0, 205}
    assert [(e["label"], e["step"], e["voxels"]) for e in removed] == [
        ("liver", "largest_component", 4),
        ("tumour", "largest_component", 2),
        ("tumour", "min_volume_ml", 4),
    ]


def test_corners_connect_and_equal_sizes_stay() -> None:
    labels = np.zeros((4, 4, 9), np.uint8)
    labels[0, 0, 0] = labels[1, 1, 1] = 1  # two voxels that share a corner
    labels[3, 3, 4:6] = 1  # as many
    labels[0, 3, 8] = 1
    (components, voxels), _ = remove_components(labels, 1, largest=True)
    assert (components, voxels) == (1, 1)
    assert labels[0, 0, 0] == labels[1, 1, 1] == labels[3, 3, 4] == 1


def shell() -> NDArray[np.uint16]:
    """A box of liver with a hole of 3 x 3 x 3, in whose middle there is a tumour; and a dent."""
    labels = np.zeros((9, 9, 9), np.uint16)
    labels[1:8, 1:8, 1:8] = 205
    labels[3:6, 3:6, 3:6] = 0
    labels[4, 4, 4] = 500
    labels[7, 4, 4] = 0
    return labels


def test_holes() -> None:
    """Only background is filled; what opens to the outside is no hole."""
    mask, changed = settings(fill_holes="all").apply(mask_of(shell()), LABELS)
    expected = shell()
    expected[3:6, 3:6, 3:6] = 205
    expected[4, 4, 4] = 500
    assert np.array_equal(mask.labels, expected)
    assert changed == [{"label": "liver", "step": "fill_holes", "components": 1, "voxels": 26, "ml": 2.6}]


def test_a_hole_does_not_leak_through_a_corner() -> None:
    """The liver connects over corners, so the background between its voxels does not."""
    labels = shell()
    labels[2, 2, 2] = 0  # a corner of the wall: touches the hole at a corner, the outside at none
    labels[1, 1, 1] = 0  # touches it at a corner, and is outside
    mask, _ = settings(fill_holes=["liver"]).apply(mask_of(labels), LABELS)
    assert mask.labels[2, 2, 2] == mask.labels[3, 3, 3] == 205
    assert mask.labels[1, 1, 1] == 0


def test_a_hole_at_the_images_border_is_open() -> None:
    labels = np.ones((3, 5, 5), np.uint8)
    labels[:, 2, 2] = 0
    assert fill_holes(labels, 1) == (0, 0)
    labels[0, 2, 2] = labels[2, 2, 2] = 1
    assert fill_holes(labels, 1) == (1, 1)


def test_components_go_before_holes_are_filled() -> None:
    """An island of tumour in the liver is removed first, and then is part of the hole."""
    labels = shell()
    labels[0, 0, 0:3] = 500
    mask, changed = settings(largest_component=["tumour"], fill_holes=["liver"]).apply(mask_of(labels), LABELS)
    assert (mask.labels[3:6, 3:6, 3:6] == 205).all()
    assert [(e["label"], e["voxels"]) for e in changed] == [("tumour", 1), ("liver", 27)]


def test_nothing_to_do() -> None:
    mask = mask_of(islands())
    assert settings().apply(mask, LABELS) == (mask, [])
    empty = mask_of(np.zeros((3, 4, 5), np.uint8))
    after, changed = settings(largest_component="all", min_volume_ml=1, fill_holes="all").apply(empty, LABELS)
    assert not after.labels.any()
    assert changed == []


def cleaned(labels: NDArray[Any], value: int, minimum: int) -> NDArray[Any]:
    """The same by SciPy on the whole array."""
    number, count = ndimage.label(labels == value, np.ones((3, 3, 3)))
    sizes = np.bincount(number.ravel())[1:]
    keep = [n + 1 for n in range(count) if sizes[n] == sizes.max() and sizes[n] >= minimum]
    result = labels.copy()
    result[(labels == value) & ~np.isin(number, keep)] = 0
    holes = ndimage.binary_fill_holes(result == value) & (result == 0)
    result[holes] = value
    return result


@pytest.mark.parametrize("slab_voxels", [1, 200, 1 << 22])
@pytest.mark.parametrize("density", [0.2, 0.5, 0.75])
def test_equal_to_scipy_on_the_whole_array(density: float, slab_voxels: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Noise has components that wind through many slabs, and holes of every shape."""
    monkeypatch.setattr(components_module, "SLAB_VOXELS", slab_voxels)
    rng = np.random.default_rng(int(density * 100))
    for minimum in (0, 4, 10_000):
        noise = rng.random((17, 9, 11))
        labels = np.where(noise < density, 1, np.where(noise < density + 0.1, 2, 0)).astype(np.uint8)
        made = Postprocessing(largest_component=("a",), min_volume_ml={"a": minimum / 10}, fill_holes=("a",))
        mask, _ = made.apply(mask_of(labels), {"background": 0, "a": 1, "b": 2})
        assert np.array_equal(mask.labels, cleaned(labels, 1, minimum))


def test_components_across_slabs(monkeypatch: pytest.MonkeyPatch) -> None:
    """A U whose arms meet in the last slice is one component, and its numbers agree everywhere."""
    monkeypatch.setattr(components_module, "SLAB_VOXELS", 1)
    inside = np.zeros((5, 3, 7), np.bool_)
    inside[:, 1, 1] = inside[:, 1, 5] = inside[4, 1, 1:6] = True
    inside[0:2, 1, 3] = True
    found = find_components(lambda slab: inside[slab], inside.shape, 6)
    assert sorted(found.sizes_vox.tolist()) == [2, 13]
    number = np.zeros(inside.shape, np.int64)
    for slab, numbers in found.voxels(np.array([True, True])):
        number[slab] = numbers
    assert np.array_equal(number > 0, inside)
    assert len(np.unique(number[:, 1, [1, 5]])) == 1
    assert number[0, 1, 3] == number[1, 1, 3] != number[0, 1, 1]


def test_every_order_of_the_voxels_gives_the_same() -> None:
    rng = np.random.default_rng(3)
    labels = (rng.random((8, 8, 8)) < 0.15).astype(np.uint8)
    reference = labels.copy()
    remove_components(reference, 1, largest=True)
    for order, flips in itertools.product(itertools.permutations(range(3)), itertools.product((1, -1), repeat=3)):
        turned = labels.transpose(order)[tuple(slice(None, None, flip) for flip in flips)].copy()
        remove_components(turned, 1, largest=True)
        assert np.array_equal(turned, reference.transpose(order)[tuple(slice(None, None, flip) for flip in flips)])


def test_memory_follows_the_slab(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the new mask, much less than a byte a voxel."""
    monkeypatch.setattr(components_module, "SLAB_VOXELS", 2 * 64 * 64)
    labels = np.zeros((200, 64, 64), np.uint8)
    labels[:, 4:60, 4:60] = 1
    labels[10:190, 25:30, 25:30] = 0
    labels[:, 0, 0] = 1
    mask, do = mask_of(labels), Postprocessing(largest_component=("a",), min_volume_ml={"a": 1.0}, fill_holes=("a",))
    do.apply(mask_of(labels[:4].copy()), {"background": 0, "a": 1})  # imports
    tracemalloc.start()
    after, _ = do.apply(mask, {"background": 0, "a": 1})
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert np.count_nonzero(after.labels) == 200 * 56 * 56
    assert peak < 1.5 * labels.size


def test_settings_survive_the_model_file() -> None:
    given = settings(largest_component="all", min_volume_ml=2, fill_holes=["liver"])
    stored = given.to_dict()
    assert stored == {
        "largest_component": ["liver", "tumour"],
        "min_volume_ml": {"liver": 2.0, "tumour": 2.0},
        "fill_holes": ["liver"],
    }
    assert Postprocessing.from_dict(stored, CLASSES) == given
    assert Postprocessing.from_dict({}, CLASSES) == Postprocessing()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"largest_component": ["livr"]}, "did you mean liver"),
        ({"fill_holes": ["background"]}, "fill_holes"),
        ({"min_volume_ml": {"spleen": 3}}, "spleen"),
        ({"fill_hole": "all"}, "did you mean fill_holes"),
        ({"largest_component": "liver"}, "not a list of names"),
        ({"largest_component": [205]}, "not a list of names"),
        ({"min_volume_ml": {"liver": "much"}}, "not a volume"),
        ({"min_volume_ml": -1}, "not a volume"),
        ({"min_volume_ml": True}, "not a volume"),
        ({"min_volume_ml": float("nan")}, "not a volume"),
    ],
)
def test_settings_that_are_not_valid(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Postprocessing.from_dict(values, CLASSES)


def test_regions_are_not_postprocessed() -> None:
    regions = make_label_map({"whole": [1, 2], "core": 2})
    assert Postprocessing.from_config(PostprocessConfig(), regions) == Postprocessing()
    with pytest.raises(ConfigError, match="masks of regions are not postprocessed"):
        Postprocessing.from_config(PostprocessConfig(fill_holes="all"), regions)


def test_from_the_command_line() -> None:
    config = load_config(None, ["postprocess.largest_component=[liver]", "postprocess.min_volume_ml={tumour: 1.5}"])
    made = Postprocessing.from_config(config.postprocess, CLASSES)
    assert made == Postprocessing(largest_component=("liver",), min_volume_ml={"tumour": 1.5})
    config = load_config(None, ["postprocess.fill_holes=all", "postprocess.min_volume_ml=2"])
    assert Postprocessing.from_config(config.postprocess, CLASSES) == settings(fill_holes="all", min_volume_ml=2)
    assert Postprocessing.from_config(load_config(None).postprocess, CLASSES) == Postprocessing()
