"""``volseg.load(model).predict(scan)``: from a file as from an array, without global state, in several threads."""

from __future__ import annotations

import os
import random
import re
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import volseg
from tests.made.scan_files import OBLIQUE, turned, write_scan
from tests.made.trained import LAS, make_scan
from volseg.errors import DataError
from volseg.geometry.volume import Mask
from volseg.inference.predictor import Predictor

Scan = tuple[NDArray[Any], NDArray[np.float64]]


@pytest.fixture
def predictor(trained_model: Path) -> Predictor:
    return volseg.load(trained_model, device="cpu")


@pytest.fixture(scope="module")
def scans() -> list[Scan]:
    """Scans of different contents, shapes, types and directions, so that a mix-up of two could not go unnoticed."""
    first, second, third = (make_scan(index)[0] for index in (4, 5, 6))
    return [(first, LAS), (second[3:, :29].astype(np.float32), OBLIQUE["far"]), (third[:, :, 3:], turned((0, 0, 90)))]


def same(mask: Mask, expected: Mask) -> bool:
    return mask.grid == expected.grid and np.array_equal(mask.labels, expected.labels)


def test_a_file_and_an_array_with_its_affine(predictor: Predictor, scans: list[Scan], tmp_path: Path) -> None:
    for voxels, affine in scans:
        path = write_scan(tmp_path / "scan.nii.gz", voxels, affine)
        from_file = predictor.predict(path)
        stored = affine.astype(np.float32)  # what NIfTI keeps of it
        assert tuple(np.unique(from_file.labels)) == (0, 205, 500, 600)
        assert same(predictor.predict(str(path)), from_file)
        assert same(predictor.predict(voxels, stored), from_file)
        assert same(predictor.predict(voxels[None], stored.tolist()), from_file)
        assert same(predictor.predict(np.asfortranarray(voxels), stored), from_file)


def test_an_array_of_simpleitk_as_the_documentation_says(scans: list[Scan], tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs/python.md").read_text(encoding="utf-8")
    code = next(block for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "GetArrayFromImage" in block)
    voxels, affine = scans[1]
    path = write_scan(tmp_path / "scan.nii.gz", voxels, affine)
    names: dict[str, Any] = {}
    exec(code.replace('"scan.nii.gz"', repr(str(path))), names)
    np.testing.assert_array_equal(names["array"], voxels)
    np.testing.assert_allclose(names["affine"], affine, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(
    ("scan", "text"),
    [
        (None, "found: NoneType"),
        ([], "found: list of nothing"),
        ([[1.0, 2.0]], "found: list of list"),
        (torch.zeros(4, 4, 4), r"found: Tensor(.|\n)*predict\(tensor\.cpu\(\)\.numpy\(\), affine\)"),
        (nibabel.Nifti1Image(np.zeros((4, 4, 4), np.uint8), np.eye(4)), r"asarray\(image\.dataobj\), image\.affine"),
    ],
    ids=["none", "empty", "list", "tensor", "nibabel"],
)
def test_what_is_no_scan(predictor: Predictor, scan: Any, text: str) -> None:
    for affine in (None, np.eye(4)):
        with pytest.raises(DataError, match=f"this is not a scan(.|\n)*{text}"):
            predictor.predict(scan, affine)


def test_the_array_is_left_as_it_is(predictor: Predictor, scans: list[Scan]) -> None:
    for voxels, affine in scans:
        given = voxels.copy()
        given.setflags(write=False)
        predictor.predict(given, affine)
        assert np.array_equal(given, voxels)


def global_state() -> dict[str, Any]:
    """What a library could change under its user's feet."""
    return {
        "environment": dict(os.environ),
        "folder": Path.cwd(),
        "chance": (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()),  # noqa: NPY002
        "gradients": (torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
        "type": torch.get_default_dtype(),
        "threads": (torch.get_num_threads(), torch.get_num_interop_threads(), threading.active_count()),
        "determinism": torch.are_deterministic_algorithms_enabled(),
        "precision": torch.get_float32_matmul_precision(),
        "errors": np.geterr(),
    }


def test_predicting_changes_nothing_outside(trained_model: Path, scans: list[Scan]) -> None:
    predictor = volseg.load(trained_model, device="cpu")
    before = global_state()
    predictor.predict(*scans[0], tta=True)
    assert global_state() == before


def test_loading_changes_nothing_outside(trained_model: Path) -> None:
    """Not even the random generators, although a network is built with random weights before its own are put in."""
    before = global_state()
    volseg.load(trained_model, device="cpu")
    assert global_state() == before


def test_no_scan_leaves_a_trace_in_the_next(trained_model: Path, scans: list[Scan]) -> None:
    """A predictor that has seen others answers as a new one does, whatever the state of the generators."""
    used = volseg.load(trained_model, device="cpu")
    masks = [used.predict(*scan) for scan in scans]
    used.predict(*scans[1], tta=True)
    for number, (scan, mask) in enumerate(zip(scans, masks, strict=True)):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(number)
            assert same(volseg.load(trained_model, device="cpu").predict(*scan), mask)
        assert same(used.predict(*scan), mask)


@pytest.mark.parametrize("shared", [True, False], ids=["one predictor", "one each"])
def test_threads_at_the_same_time(shared: bool, trained_model: Path, scans: list[Scan], tmp_path: Path) -> None:
    """Each thread starts every scan together with the others, and each is at another scan."""
    one = volseg.load(trained_model, device="cpu")
    jobs: list[Callable[[Predictor], Mask]] = [
        lambda predictor: predictor.predict(*scans[0]),
        lambda predictor: predictor.predict(write_scan(tmp_path / "scan.nii.gz", *scans[1])),
        lambda predictor: predictor.predict(*scans[2], tta=True),
    ]
    alone = [job(one) for job in jobs]
    together = threading.Barrier(len(jobs))

    def work(first: int) -> list[bool]:
        predictor = one if shared else volseg.load(trained_model, device="cpu")
        equal = []
        for turn in range(2):
            number = (first + turn) % len(jobs)
            together.wait(timeout=60)
            equal.append(same(jobs[number](predictor), alone[number]))
        return equal

    with ThreadPoolExecutor(len(jobs)) as pool:
        assert list(pool.map(work, range(len(jobs)))) == [[True, True]] * len(jobs)
