"""Cases are shared out among processes by their numbers of voxels."""

from __future__ import annotations

import random
from pathlib import Path

import nibabel
import numpy as np

from volseg.inference.cohort.shard import shard_of, share_out
from volseg.io.cases import list_images


def test_the_largest_items_are_shared_out_first_and_ties_in_order() -> None:
    assert share_out([1, 1, 1, 1], 2) == [[0, 2], [1, 3]]
    assert share_out([3, 9, 4, 4, 2], 2) == [[1, 4], [0, 2, 3]]
    assert share_out([0, 0, 0], 2) == [[0, 2], [1]]
    assert share_out([5], 3) == [[0], [], []]


def test_every_item_has_one_shard_and_no_shard_exceeds_another_by_more_than_an_item() -> None:
    draw = random.Random(0)
    for count in range(1, 9):
        sizes = [draw.randrange(1, 1000) for _ in range(draw.randrange(1, 40))]
        shards = share_out(sizes, count)
        assert sorted(number for shard in shards for number in shard) == list(range(len(sizes)))
        loads = [sum(sizes[number] for number in shard) for shard in shards]
        assert max(loads) - min(loads) <= max(sizes)


def test_cases_are_shared_out_by_the_voxels_in_their_headers(tmp_path: Path) -> None:
    """The one large scan is a shard of its own; a damaged one belongs to a shard, too, where it fails."""
    for name, depth in {"a": 2, "b": 3, "c": 40, "d": 2}.items():
        nibabel.save(nibabel.Nifti1Image(np.zeros((4, 4, depth), np.uint8), np.eye(4)), tmp_path / f"{name}.nii.gz")
    (tmp_path / "damaged.nii.gz").write_bytes(b"not a scan")
    cases = list_images(tmp_path)
    shards = [[case.id for case in shard_of(cases, (index, 2))] for index in range(2)]
    assert shards == [["c"], ["a", "b", "d", "damaged"]]
    assert shard_of(cases, None) == cases
    assert shard_of([], (0, 2)) == []
