"""The three definitions of HD95, compared with the libraries that define them."""

from __future__ import annotations

import numpy as np
import pytest

from tests.made.masks import SPACINGS, random_mask, random_pair
from volseg.metrics import case_scores

SEEDS = range(24)
MM = 1e-4


@pytest.mark.filterwarnings("ignore::FutureWarning")  # torch's own, while MONAI is imported
@pytest.mark.parametrize("seed", SEEDS)
def test_max_equals_monai(seed: int) -> None:
    monai = pytest.importorskip("monai.metrics", reason="MONAI is not installed")
    torch = pytest.importorskip("torch")
    pred, ref, spacing = random_pair(seed)
    tensors = [torch.from_numpy(np.ascontiguousarray(mask))[None, None] for mask in (pred, ref)]
    keys = {"include_background": True, "spacing": list(spacing)}
    scores = case_scores(pred, ref, spacing, [1])[1]
    assert scores["hd95"] == pytest.approx(
        monai.compute_hausdorff_distance(*tensors, percentile=95, **keys).item(), abs=MM
    )
    assert scores["hd"] == pytest.approx(monai.compute_hausdorff_distance(*tensors, **keys).item(), abs=MM)
    assd = monai.compute_average_surface_distance(*tensors, symmetric=True, **keys).item()
    assert scores["assd"] == pytest.approx(assd, abs=MM)
    assert scores["dice"] == pytest.approx(monai.compute_dice(*tensors).item(), abs=1e-6)


@pytest.mark.parametrize("seed", SEEDS)
def test_pooled_equals_medpy(seed: int) -> None:
    medpy = pytest.importorskip("medpy.metric.binary", reason="extra volseg[bench]: MedPy")
    pred, ref, spacing = random_pair(seed)
    scores = case_scores(pred, ref, spacing, [1], hd_mode="pooled")[1]
    assert scores["hd95"] == pytest.approx(medpy.hd95(pred, ref, spacing), abs=MM)
    assert scores["hd"] == pytest.approx(medpy.hd(pred, ref, spacing), abs=MM)
    assert scores["assd"] == pytest.approx(medpy.assd(pred, ref, spacing), abs=MM)
    assert scores["dice"] == pytest.approx(medpy.dc(pred, ref))
    assert scores["iou"] == pytest.approx(medpy.jc(pred, ref))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("tolerance_mm", [0.5, 1.0, 2.5, 30.0])
def test_surfel_and_nsd_equal_deepmind(seed: int, tolerance_mm: float) -> None:
    library = pytest.importorskip("surface_distance", reason="extra volseg[bench]: surface-distance")
    pred, ref, spacing = random_pair(seed)
    distances = library.compute_surface_distances(np.ascontiguousarray(ref), np.ascontiguousarray(pred), spacing)
    nsd = library.compute_surface_dice_at_tolerance(distances, tolerance_mm)
    surfel = case_scores(pred, ref, spacing, [1], hd_mode="surfel", nsd_tolerance_mm=tolerance_mm)[1]
    assert surfel["hd95"] == pytest.approx(library.compute_robust_hausdorff(distances, 95), abs=MM)
    assert surfel["hd"] == pytest.approx(library.compute_robust_hausdorff(distances, 100), abs=MM)
    assert surfel["nsd"] == pytest.approx(nsd, abs=1e-9)
    assert case_scores(pred, ref, spacing, [1], nsd_tolerance_mm=tolerance_mm)[1]["nsd"] == pytest.approx(nsd, abs=1e-9)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("seed", range(8))
def test_a_single_slice_equals_the_libraries_in_2d(seed: int, axis: int) -> None:
    torch = pytest.importorskip("torch")
    monai = pytest.importorskip("monai.metrics", reason="MONAI is not installed")
    medpy = pytest.importorskip("medpy.metric.binary", reason="extra volseg[bench]: MedPy")
    library = pytest.importorskip("surface_distance", reason="extra volseg[bench]: surface-distance")
    rng = np.random.default_rng(seed)
    shape = tuple(int(n) for n in rng.integers(3, 14, 2))
    pred, ref = random_mask(rng, shape), random_mask(rng, shape)
    spacing = tuple(float(s) for s in rng.choice(SPACINGS, 2))
    volumes = [np.expand_dims(mask, axis) for mask in (pred, ref)]
    spacing_3d = np.insert(np.array(spacing), axis, 5.0)
    scores = {m: case_scores(*volumes, spacing_3d, [1], hd_mode=m)[1] for m in ("max", "pooled", "surfel")}
    tensors = [torch.from_numpy(np.ascontiguousarray(mask))[None, None] for mask in (pred, ref)]
    keys = {"include_background": True, "spacing": list(spacing)}
    hd95 = monai.compute_hausdorff_distance(*tensors, percentile=95, **keys).item()
    assert scores["max"]["hd95"] == pytest.approx(hd95, abs=MM)
    assert scores["pooled"]["hd95"] == pytest.approx(medpy.hd95(pred, ref, spacing), abs=MM)
    assert scores["max"]["assd"] == pytest.approx(medpy.assd(pred, ref, spacing), abs=MM)
    distances = library.compute_surface_distances(np.ascontiguousarray(ref), np.ascontiguousarray(pred), spacing)
    nsd = library.compute_surface_dice_at_tolerance(distances, 1.0)
    assert scores["max"]["nsd"] == pytest.approx(nsd, abs=1e-9)
    assert scores["surfel"]["hd95"] == pytest.approx(library.compute_robust_hausdorff(distances, 95), abs=MM)
