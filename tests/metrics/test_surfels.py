from __future__ import annotations

import numpy as np
import pytest

from volseg.metrics.surfels import CODE_BITS, surfel_areas_mm2


def test_a_plane_has_the_area_of_a_voxel_face() -> None:
    areas = surfel_areas_mm2((2.0, 3.0, 5.0))
    assert areas[CODE_BITS[0].sum()] == pytest.approx(15)
    assert areas[CODE_BITS[:, 1].sum()] == pytest.approx(10)
    assert areas[CODE_BITS[:, :, 0].sum()] == pytest.approx(6)


def test_empty_and_full_cubes_have_no_area_and_complements_equal_areas() -> None:
    areas = surfel_areas_mm2((1.0, 1.2, 3.0))
    assert areas[0] == areas[255] == 0
    assert (areas[1:255] > 0).all()
    assert np.array_equal(areas, areas[::-1])


def test_one_corner_cuts_a_triangle() -> None:
    # The triangle joins the middles of three edges; its area is |u x v| / 2 with u = (-a, b, 0)/2, v = (-a, 0, c)/2.
    a, b, c = 1.0, 2.0, 3.0
    expected = 0.5 * np.linalg.norm(np.cross([-a / 2, b / 2, 0], [-a / 2, 0, c / 2]))
    for bit in CODE_BITS.ravel():
        assert surfel_areas_mm2((a, b, c))[bit] == pytest.approx(expected)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_all_codes_equal_deepminds_table() -> None:
    tables = pytest.importorskip("surface_distance.lookup_tables", reason="extra volseg[bench]: surface-distance")
    for spacing in ((1.0, 1.0, 1.0), (0.7, 1.3, 5.0)):
        expected = tables.create_table_neighbour_code_to_surface_area(spacing)
        np.testing.assert_allclose(surfel_areas_mm2(spacing), expected, rtol=1e-12)
    assert np.array_equal(CODE_BITS, tables.ENCODE_NEIGHBOURHOOD_3D_KERNEL)
