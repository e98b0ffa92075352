"""Example cases of a report: pictures of the worst, median and best case, and the search for their scans."""

from __future__ import annotations

import base64
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from volseg.errors import VolsegError
from volseg.evaluation.masks import CaseMask, Labels, empty_case_mask, read_case_mask
from volseg.evaluation.results import CaseResult, Evaluation
from volseg.geometry.grid import Grid
from volseg.geometry.ops import in_order_of
from volseg.geometry.volume import Volume
from volseg.io.description import Description
from volseg.io.modality import looks_like_ct
from volseg.io.volumes import GRID_MM, is_scan, read_volume, volume_stem
from volseg.report.figures import case_png
from volseg.report.planes import CaseViews

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Images:
    """Scans of the scored cases.

    Attributes:
        files: Case -> file of the scan, or of its first channel.
        modality: ``ct``, ``mri``, or ``None`` to detect it from the grey values.
    """

    files: Mapping[str, Path]
    modality: str | None = None


@dataclass(frozen=True)
class Picture:
    """Picture of a case, and its rank: ``worst``, ``median`` or ``best``."""

    rank: str
    method: str
    case: str
    dice: float
    png: bytes

    @property
    def source(self) -> str:
        """The picture as a ``data:`` URL."""
        return "data:image/png;base64," + base64.b64encode(self.png).decode("ascii")

    @property
    def file_name(self) -> str:
        """File name of the picture, valid on every system."""
        return re.sub(r"[^\w.-]", "_", f"{self.method}_{self.rank}") + ".png"


def find_images(
    images: str | Path | Mapping[str, Path] | None, description: Description | None, ref: str | Path | None
) -> Images:
    """Find the scans: in ``images``, else as listed in ``dataset.json``, else in the folder next to the references.

    Args:
        images: Folder of scans (``case.nii.gz`` or ``case_0000.nii.gz``), case -> file, or ``None``.
        description: The ``dataset.json``, or ``None``.
        ref: Folder of the references; ``labelsTr`` has its scans in ``imagesTr``, ``labels`` in ``images``.
    """
    modality = description.modality if description is not None else None
    if isinstance(images, Mapping):
        return Images(images, modality)
    if images is None and description is not None and description.cases:
        listed = {volume_stem(case.label): case.images[0] for case in description.cases if case.label is not None}
        listed |= {case.id: case.images[0] for case in description.cases}  # the name of the scored case
        return Images({case: path for case, path in listed.items() if path.exists()}, modality)
    ref_folder = Path(ref).resolve() if ref is not None else None
    folder = (
        Path(images) if images else ref_folder and ref_folder.with_name(ref_folder.name.replace("labels", "images", 1))
    )
    if folder is None or not folder.is_dir() or folder.resolve() == ref_folder:
        return Images({}, modality)
    files = {volume_stem(path): path for path in sorted(folder.iterdir()) if is_scan(path)}
    first_channels = {name.removesuffix("_0000"): path for name, path in files.items() if name.endswith("_0000")}
    return Images({**files, **first_channels}, modality)


def example_pictures(evaluation: Evaluation, images: Images) -> list[Picture]:
    """Draw the worst, median and best case of every method by mean Dice; cases that cannot be drawn are skipped."""
    pictures = []
    for method in evaluation.methods:
        table = evaluation.values(method, "dice")
        scored = [(float(np.nanmean(row)), i) for i, row in enumerate(table) if not np.isnan(row).all()]
        ranked = sorted(scored)
        positions = {"worst": 0, "median": (len(ranked) - 1) // 2, "best": len(ranked) - 1}
        drawn: set[int] = set()
        for rank, position in positions.items():
            if not ranked or position in drawn:  # with few cases the ranks coincide
                continue
            drawn.add(position)
            dice, number = ranked[position]
            result = evaluation.of_method(method)[number]
            if result.reference is None:  # the scores do not come from files
                continue
            try:
                png = _picture(evaluation, result, images, f"{rank}: {result.case}   {method}")
            except (VolsegError, OSError) as error:
                logger.warning("%s: cannot be drawn, skipped: %s", result.case, error)
                continue
            pictures.append(Picture(rank, method, result.case, dice, png))
    return pictures


def _picture(evaluation: Evaluation, result: CaseResult, images: Images, title: str) -> bytes:
    assert result.reference is not None  # checked by the caller
    label_map = evaluation.label_map
    reference = read_case_mask(result.reference, label_map)
    prediction = read_case_mask(result.prediction, label_map) if result.prediction else None
    prediction = prediction or empty_case_mask(reference.grid, label_map)
    prediction = prediction.in_order_of(reference.grid, GRID_MM)
    image, modality = _image(images, result.case, reference.grid)
    views = CaseViews.of(image, _merged(reference), _merged(prediction), reference.grid)
    return case_png(views, label_map.classes, result.scores, modality=modality, title=title)


def _image(images: Images, case: str, grid: Grid) -> tuple[np.ndarray[Any, Any] | None, str]:
    """Return the grey values, or ``None`` without a scan on the grid of the masks, and the modality."""
    path = images.files.get(case)
    if path is None:
        return None, "mri"
    volume = read_volume(path)
    volume = Volume(*in_order_of(volume.data, volume.grid, grid))
    if not volume.grid.same_as(grid):
        logger.warning("%s: scan is not on the grid of the reference, skipped", path)
        return None, "mri"
    image = volume.data[0]
    return image, images.modality or ("ct" if looks_like_ct(image) else "mri")


def _merged(mask: CaseMask) -> Labels:
    """Merge the layers into one label map for drawing; the first class wins where classes overlap."""
    merged = mask.layers[0].labels
    for layer in mask.layers[1:]:
        merged = np.where(merged == 0, layer.labels, merged)
    return merged
