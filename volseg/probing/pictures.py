"""Pictures of slice features: slices of a scan, and the principal components of their patch tokens as colours."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from volseg.errors import ConfigError, counted
from volseg.io.atomic import atomic_file
from volseg.io.cases import Case
from volseg.io.json_files import write_json
from volseg.parallel import Progress
from volseg.probing.pca import Pca, fit_pca
from volseg.probing.scans import ScanSet

if TYPE_CHECKING:
    from matplotlib.figure import Figure

logger = logging.getLogger(__name__)

FITS = ("all", "scan")
"""What the components are fitted to: the slices of all scans, or those of each scan alone."""
GREY = (0.5, 99.5)
"""Percentiles of a slice that are black and white."""
INCHES = 2.2
TITLE_INCHES = 5.0
"""Least width of a picture, so that its title is not cut."""


class ShownSlice(NamedTuple):
    """A slice and its tokens.

    Attributes:
        number: Its number in the working orientation.
        image: ``(H, W)``, the first channel, normalised.
        patches: ``(E, h, w)``.
    """

    number: int
    image: NDArray[Any]
    patches: NDArray[Any]


@dataclass(frozen=True)
class ShownScan:
    """Slices of a scan.

    Attributes:
        id: Name of the scan.
        slices: The slices.
        count: Slices of the scan.
        spacing_mm: Height and width of a pixel.
        orientation: Directions in which slices, rows and columns grow.
    """

    id: str
    slices: tuple[ShownSlice, ...]
    count: int
    spacing_mm: tuple[float, float]
    orientation: str


def write_features(
    scans: ScanSet, output: Path, *, slices: int, fit: str, progress: Progress | None = None
) -> list[Path]:
    """Write a picture ``SCAN.png`` of each scan, and ``features.json``. The tokens of all shown slices stay in memory.

    Args:
        scans: The scans and the encoder.
        output: Folder of the pictures.
        slices: Most slices of a scan, evenly spaced.
        fit: One of `FITS`.
        progress: Called after every encoded scan with (done, in all).

    Raises:
        ConfigError: There is no such fit, or no slice.
        DataError: A scan cannot be read.
        OutputError: A file cannot be written.
    """
    if fit not in FITS:
        raise ConfigError("there is no such fit of the components", found=fit, expected=" or ".join(FITS))
    if slices < 1:
        raise ConfigError("the number of slices is out of range", found=slices, expected="at least 1")
    shown = []
    logger.info("encoding slices of %s", counted(len(scans.cases), "scan"))
    for done, case in enumerate(scans.cases, start=1):
        shown.append(_shown(scans, case, slices))
        if progress is not None:
            progress(done, len(scans.cases))
    common = fit_pca([each.patches for scan in shown for each in scan.slices]) if fit == "all" else None
    files, record = [], {}
    for scan in shown:
        pca = fit_pca([each.patches for each in scan.slices]) if common is None else common
        files.append(output / f"{scan.id}.png")
        with atomic_file(files[-1]) as file:
            figure = features_figure(scan, pca, scans.encoder.slices.token_stride, origin_text(scans.encoder.record))
            figure.savefig(file, format="png", dpi=110)
        record[scan.id] = _described(scan, pca)
    files.append(output / "features.json")
    write_json(files[-1], {"encoder": scans.encoder.record, "fit": fit, "scans": record})
    return files


def _shown(scans: ScanSet, case: Case, slices: int) -> ShownScan:
    scan = scans.read(case)
    indices, grid = scan.evenly(slices), scan.image.trace.target
    tokens = scans.encoder.tokens(scan, indices)
    images = [scan.image.slab(index, index + 1)[0, 0] for index in indices]
    shown = [ShownSlice(*each) for each in zip(indices, images, (one.patches for one in tokens), strict=True)]
    return ShownScan(scan.id, tuple(shown), scan.count, grid.spacing_mm[1:], grid.orientation)


def _described(scan: ShownScan, pca: Pca) -> Mapping[str, Any]:
    return {
        "slices": [each.number for each in scan.slices],
        "of": scan.count,
        "orientation": scan.orientation,
        "explained_variance": [round(float(share), 4) for share in pca.explained],
    }


def origin_text(record: Mapping[str, Any]) -> str:
    """Return the encoder of a record in one line: the trained model, or encoder and weights."""
    return str(record["model"]) if "model" in record else f"{record['encoder']}, weights: {record['weights']}"


def features_figure(scan: ShownScan, pca: Pca, stride: int, origin: str) -> Figure:
    """Draw the slices of a scan, and below each the components as red, green and blue.

    Args:
        scan: The slices.
        pca: The components.
        stride: Pixels of a slice along the side of a token.
        origin: The encoder, as text.
    """
    from matplotlib.figure import Figure

    rows, columns = scan.slices[0].image.shape
    aspect = scan.spacing_mm[0] / scan.spacing_mm[1]
    height = INCHES * min(2.0, max(0.5, rows * aspect / columns))
    figure = Figure(figsize=(max(TITLE_INCHES, INCHES * len(scan.slices)), 2 * height + 0.7), layout="constrained")
    axes = figure.subplots(2, len(scan.slices), squeeze=False)
    for each, (above, below) in zip(scan.slices, axes.T, strict=True):
        low, high = np.percentile(each.image, GREY)
        above.imshow(each.image, cmap="gray", vmin=low, vmax=high, aspect=aspect)
        below.imshow(overlay(pca, each.patches, stride, each.image.shape), aspect=aspect, interpolation="nearest")
        above.set_title(f"slice {each.number} (0 to {scan.count - 1})", fontsize=8)
    for each in axes.flat:
        each.set_axis_off()
    explained = ", ".join(f"{share:.0%}" for share in pca.explained)
    title = f"{scan.id} ({scan.orientation}): components 1 to 3 explain {explained} of the variance\n{origin}"
    figure.suptitle(title, fontsize=9, parse_math=False)
    return figure


def overlay(pca: Pca, patches: NDArray[Any], stride: int, shape: Sequence[int]) -> NDArray[np.float64]:
    """Return the colours of tokens ``(E, h, w)`` at the pixels of a slice of ``shape`` (H, W): ``(H, W, 3)``."""
    colours = pca.colours(patches).repeat(stride, axis=0).repeat(stride, axis=1)
    return colours[: shape[0], : shape[1]]
