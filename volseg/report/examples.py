"""The cases that a report shows: worst, median and best, with their scans where these are found."""

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
from volseg.io.description import Description
from volseg.io.modality import looks_like_ct
from volseg.io.volumes import has_volume_suffix, read_volume, volume_stem
from volseg.report.figures import case_png
from volseg.report.planes import CaseViews

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Images:
    """Scans of the scored cases.

    Attributes:
        files: Case -> file of the (first channel of the) scan.
        modality: ``ct``, ``mri``, or ``None`` where it must be seen from the values.
    """

    files: Mapping[str, Path]
    modality: str | None = None


@dataclass(frozen=True)
class Picture:
    """A case in the report, and what it is an example of."""

    rank: str
    method: str
    case: str
    dice: float
    png: bytes

    @property
    def source(self) -> str:
        """The picture as a ``data:`` address."""
        return "data:image/png;base64," + base64.b64encode(self.png).decode("ascii")

    @property
    def file_name(self) -> str:
        """Name of the picture as a file, the same on every system."""
        return re.sub(r"[^\w.-]", "_", f"{self.method}_{self.rank}") + ".png"


def find_images(
    images: str | Path | Mapping[str, Path] | None, description: Description | None, ref: str | Path | None
) -> Images:
    """Find the scans: in the folder given, else as ``dataset.json`` lists them, else beside the references.

    Args:
        images: Folder of scans (``case.nii.gz`` or ``case_0000.nii.gz``), case -> file, or ``None``.
        description: The ``dataset.json``, or ``None``.
        ref: Folder of the references; ``labelsTr`` has its scans in ``imagesTr``, ``labels`` in ``images``.
    """
    modality = description.modality if description is not None else None
    if isinstance(images, Mapping):
        return Images(images, modality)
    if images is None and description is not None and description.pairs:
        listed = {volume_stem(pair.label): pair.image for pair in description.pairs}
        listed |= {volume_stem(pair.image): pair.image for pair in description.pairs}  # the name of the scored case
        return Images({case: path for case, path in listed.items() if path.is_file()}, modality)
    beside = Path(ref).resolve() if ref is not None else None
    folder = Path(images) if images else beside and beside.with_name(beside.name.replace("labels", "images", 1))
    if folder is None or not folder.is_dir() or folder.resolve() == beside:
        return Images({}, modality)
    files = {volume_stem(path): path for path in sorted(folder.iterdir()) if has_volume_suffix(path)}
    first_channels = {name.removesuffix("_0000"): path for name, path in files.items() if name.endswith("_0000")}
    return Images({**files, **first_channels}, modality)


def example_pictures(evaluation: Evaluation, images: Images) -> list[Picture]:
    """Worst, median and best case of every method by mean Dice over classes; what cannot be drawn is left out."""
    pictures = []
    for method in evaluation.methods:
        table = evaluation.values(method, "dice")
        scored = [(float(np.nanmean(row)), i) for i, row in enumerate(table) if not np.isnan(row).all()]
        ranked = sorted(scored)
        places = {"worst": 0, "median": (len(ranked) - 1) // 2, "best": len(ranked) - 1}
        seen: set[int] = set()
        for rank, place in places.items():
            if not ranked or place in seen:
                continue
            seen.add(place)
            dice, number = ranked[place]
            result = evaluation.of_method(method)[number]
            if result.reference is None:  # scores without files
                continue
            try:
                png = _picture(evaluation, result, images, f"{rank}: {result.case}   {method}")
            except (VolsegError, OSError) as error:
                logger.warning("no picture of %s: %s", result.case, error)
                continue
            pictures.append(Picture(rank, method, result.case, dice, png))
    return pictures


def _picture(evaluation: Evaluation, result: CaseResult, images: Images, title: str) -> bytes:
    assert result.reference is not None  # checked by the caller
    label_map = evaluation.label_map
    reference = read_case_mask(result.reference, label_map)
    prediction = read_case_mask(result.prediction, label_map) if result.prediction else None
    prediction = prediction or empty_case_mask(reference.grid, label_map)
    image, modality = _image(images, result.case, reference.grid)
    views = CaseViews.of(image, _merged(reference), _merged(prediction), reference.grid)
    return case_png(views, label_map.classes, result.scores, modality=modality, title=title)


def _image(images: Images, case: str, grid: Grid) -> tuple[np.ndarray[Any, Any] | None, str]:
    """The grey values of a case, if its scan is found and lies on the grid of the masks, and the modality."""
    path = images.files.get(case)
    if path is None:
        return None, "mri"
    volume = read_volume(path)
    if not volume.grid.same_as(grid):
        logger.warning("%s: not on the grid of the reference, not drawn", path)
        return None, "mri"
    image = volume.data[0]
    return image, images.modality or ("ct" if looks_like_ct(image) else "mri")


def _merged(mask: CaseMask) -> Labels:
    """One label map for drawing; where classes overlap the first one stays."""
    merged = mask.layers[0].labels
    for layer in mask.layers[1:]:
        merged = np.where(merged == 0, layer.labels, merged)
    return merged
