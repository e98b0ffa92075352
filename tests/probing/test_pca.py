"""Principal components of tokens, and the picture made of them."""

from __future__ import annotations

import numpy as np

from volseg.probing.pca import Pca, fit_pca
from volseg.probing.pictures import ShownScan, ShownSlice, features_figure, overlay

UNIT = Pca(np.zeros(3), np.eye(3), np.array([0.5, 0.3, 0.2]), np.zeros(3), np.array([2.0, 4.0, 1.0]))


def made_tokens(rng: np.random.Generator, size: tuple[int, int] = (5, 6)) -> np.ndarray:
    """Tokens (4, h, w) that vary most along axis 2, then 0, then 3, and not along 1."""
    tokens = rng.normal(size=(4, *size)) * np.array([3, 0, 10, 1])[:, None, None]
    return (tokens + np.array([5, 7, -2, 0])[:, None, None]).astype(np.float32)


def test_components_are_the_axes_of_largest_variance_and_positive() -> None:
    rng = np.random.default_rng(0)
    pca = fit_pca([made_tokens(rng, (30, 30)) for _ in range(4)])

    np.testing.assert_allclose(pca.components, np.eye(4)[[2, 0, 3]], atol=0.05)
    np.testing.assert_allclose(pca.explained, np.array([100, 9, 1]) / 110, atol=0.02)
    np.testing.assert_allclose(pca.mean, [5, 7, -2, 0], atol=0.5)


def test_components_equal_those_of_a_singular_value_decomposition() -> None:
    rng = np.random.default_rng(1)
    slices = [rng.normal(size=(8, 3, 4)) @ rng.normal(size=(4, 4)) for _ in range(3)]
    rows = np.concatenate([each.reshape(8, -1).T for each in slices])
    _, values, vectors = np.linalg.svd(rows - rows.mean(axis=0), full_matrices=False)
    pca = fit_pca(slices)

    np.testing.assert_allclose(np.abs(pca.components), np.abs(vectors[:3]), atol=1e-8)
    np.testing.assert_allclose(pca.explained, values[:3] ** 2 / (values**2).sum())


def test_one_and_ninety_nine_percent_become_black_and_full_colour() -> None:
    ramp = np.zeros((3, 1, 101))
    ramp[0] = np.arange(101)
    colours = fit_pca([ramp]).colours(ramp)

    np.testing.assert_allclose(colours[0, [0, 1, 50, 99, 100], 0], [0, 0, 0.5, 1, 1], atol=1e-9)


def test_equal_tokens_have_one_colour() -> None:
    pca = fit_pca([np.ones((4, 2, 2))])

    assert np.isfinite(pca.colours(np.ones((4, 2, 2)))).all()
    np.testing.assert_array_equal(pca.explained, 0)


def test_tokens_cover_their_pixels_and_padding_is_cut() -> None:
    patches = np.array([[[0, 1], [2, 4]], [[0, 4], [8, 2]], [[1, 0], [0.5, 0]]])  # (3, 2, 2)
    picture = overlay(UNIT, patches, 2, (3, 4))

    assert picture.shape == (3, 4, 3)
    np.testing.assert_array_equal(picture[:2, :2], np.broadcast_to([0, 0, 1], (2, 2, 3)))
    np.testing.assert_array_equal(picture[:2, 2:], np.broadcast_to([0.5, 1, 0], (2, 2, 3)))
    np.testing.assert_array_equal(picture[2, :2], np.broadcast_to([1, 1, 0.5], (2, 3)))


def test_the_figure_shows_each_slice_above_its_colours() -> None:
    image = np.arange(12.0).reshape(3, 4)
    slices = tuple(ShownSlice(number, image + number, np.full((3, 2, 2), float(number))) for number in (1, 4))
    figure = features_figure(ShownScan("a$b", slices, 6, (2.0, 1.0), "IPL"), UNIT, 2, "tiny, weights: random")
    above, below = figure.axes[:2], figure.axes[2:]

    np.testing.assert_array_equal(above[1].images[0].get_array(), image + 4)
    np.testing.assert_array_equal(below[1].images[0].get_array(), overlay(UNIT, slices[1].patches, 2, (3, 4)))
    assert [axes.get_aspect() for axes in figure.axes] == [2.0] * 4
    assert above[1].get_title() == "slice 4 (0 to 5)"
    assert figure.get_suptitle().endswith("of the variance\ntiny, weights: random")
