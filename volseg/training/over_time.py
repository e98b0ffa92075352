"""``validation/over_time.png``: the same slices of held-out cases at each validation, beside image and reference."""

from __future__ import annotations

import io
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from volseg.geometry.grid import Grid
from volseg.geometry.ops import reorient
from volseg.geometry.volume import Mask
from volseg.io.atomic import atomic_file
from volseg.io.cases import Case
from volseg.io.volumes import read_volume

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

logger = logging.getLogger(__name__)

MOST_CASES = 3
MOST_COLUMNS = 8
"""Validations that are shown: the first, the last, and some between."""
STORE, PICTURE = "over_time.npz", "over_time.png"


@dataclass
class SliceHistory:
    """A slice of a case with its masks over the validations.

    Attributes:
        image: Grey values (rows, columns), row 0 at the top.
        reference: Labels.
        aspect: Height over width of a voxel.
        masks: Labels by step.
    """

    image: NDArray[Any]
    reference: NDArray[Any]
    aspect: float
    masks: dict[int, NDArray[Any]] = field(default_factory=dict)


class ValidationSlices:
    """Collect a slice of the first held-out cases at a validation, beside those of the validations before.

    The slices are stored beside the picture, so that a resumed run continues them.

    Args:
        folder: Folder ``validation`` of the run.
        step: Step of this validation; masks of this and later steps, from an interrupted run, are dropped.
        orientation: Directions of slices, rows and columns, such as ``SPL``: those of the plan.
    """

    def __init__(self, folder: Path, step: int, orientation: str) -> None:
        self._folder, self._step, self._orientation = folder, step, orientation
        self.cases: dict[str, SliceHistory] = read_slices(folder / STORE, step - 1)

    def show(self, case: Case, reference: Mask, mask: Mask) -> None:
        """Add the slice of a case with most reference voxels; after the first `MOST_CASES`, new cases are not kept.

        Args:
            case: The case.
            reference: Its labels.
            mask: The prediction on the same grid.
        """
        if case.id not in self.cases and len(self.cases) == MOST_CASES:
            return
        expected = self._turned(reference.labels, reference.grid)
        index = int((expected > 0).sum(axis=(1, 2)).argmax())
        if case.id not in self.cases:
            logger.info("validation/%s shows slice %d of %s", PICTURE, index, case.id)
            _, height_mm, width_mm = reorient(reference.labels, reference.grid, self._orientation)[1].spacing_mm
            grey = self._turned(read_volume(case.images[0]).data[0], reference.grid)[index]
            self.cases[case.id] = SliceHistory(np.array(grey), np.array(expected[index]), height_mm / width_mm)
        self.cases[case.id].masks[self._step] = np.array(self._turned(mask.labels, mask.grid)[index])

    def _turned(self, volume: NDArray[Any], grid: Grid) -> NDArray[Any]:
        return reorient(volume, grid, self._orientation)[0]

    def write(self) -> None:
        """Store the slices and draw the picture, atomically.

        Raises:
            OutputError: A file cannot be written.
        """
        if not self.cases:
            return
        self._folder.mkdir(exist_ok=True)
        with atomic_file(self._folder / STORE) as file:
            np.savez_compressed(file, **_arrays(self.cases))
        content = io.BytesIO()
        over_time_figure(self.cases).savefig(content, format="png", dpi=110)
        with atomic_file(self._folder / PICTURE) as file:
            file.write(content.getvalue())


def read_slices(path: Path, last_step: int) -> dict[str, SliceHistory]:
    """Read stored slices up to a step; a missing or damaged file holds none."""
    if not path.exists():
        return {}
    try:
        with np.load(path, allow_pickle=False) as stored:
            cases: dict[str, SliceHistory] = {}
            for number, name in enumerate(stored["cases"].tolist()):
                parts = (stored[f"{number}/image"], stored[f"{number}/reference"], float(stored[f"{number}/aspect"]))
                steps = [int(step) for step in stored[f"{number}/steps"] if step <= last_step]
                masks = {step: stored[f"{number}/mask/{step}"] for step in steps}
                cases[name] = SliceHistory(*parts, masks)
            return cases
    except (OSError, ValueError, KeyError, TypeError, EOFError) as error:
        logger.warning("%s cannot be read, the picture starts anew: %s", path, error)
        return {}


def shown_steps(steps: Sequence[int]) -> list[int]:
    """Return at most `MOST_COLUMNS` steps, evenly spread, the first and the last included."""
    ordered = sorted(steps)
    places = np.linspace(0, len(ordered) - 1, min(len(ordered), MOST_COLUMNS)).round().astype(int)
    return [ordered[place] for place in places]


def over_time_figure(cases: Mapping[str, SliceHistory]) -> Figure:
    """Return a figure with a row per case: image, reference, and the mask of each shown validation."""
    from matplotlib.figure import Figure

    steps = shown_steps(list({step for history in cases.values() for step in history.masks}))
    figure = Figure(figsize=(2.1 * (2 + len(steps)), 2.3 * len(cases)))
    figure.subplots_adjust(left=0.01, right=0.99, bottom=0.02, top=1 - 0.09 / len(cases), wspace=0.03, hspace=0.12)
    rows = figure.subplots(len(cases), 2 + len(steps), squeeze=False)
    for row, (name, history) in zip(rows, cases.items(), strict=True):
        _draw(row[0], history, None, name)
        _draw(row[1], history, history.reference, "reference")
        for axes, step in zip(row[2:], steps, strict=True):
            _draw(axes, history, history.masks.get(step), f"step {step}")
    return figure


def _draw(axes: Axes, history: SliceHistory, labels: NDArray[Any] | None, title: str) -> None:
    from matplotlib import colormaps

    low, high = np.percentile(history.image, (1, 99.5))
    axes.imshow(history.image, cmap="gray", vmin=low, vmax=max(high, low + 1e-6), aspect=history.aspect)
    if labels is not None:
        colours = np.array([*colormaps["tab10"].colors, *colormaps["Set3"].colors])  # type: ignore[attr-defined]
        overlay = np.concatenate(
            [colours[(labels.astype(int) - 1) % len(colours)], 0.55 * (labels > 0)[..., None]], axis=-1
        )
        axes.imshow(overlay, aspect=history.aspect, interpolation="nearest")
    axes.set_title(title, fontsize="small", parse_math=False)
    axes.set_axis_off()


def _arrays(cases: Mapping[str, SliceHistory]) -> dict[str, Any]:
    arrays: dict[str, Any] = {"cases": np.array(list(cases))}
    for number, history in enumerate(cases.values()):
        arrays |= {f"{number}/image": history.image, f"{number}/reference": history.reference}
        arrays |= {f"{number}/aspect": history.aspect, f"{number}/steps": np.array(list(history.masks), int)}
        arrays |= {f"{number}/mask/{step}": mask for step, mask in history.masks.items()}
    return arrays
