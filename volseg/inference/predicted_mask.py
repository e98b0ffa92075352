"""A mask with what its file holds beside the voxels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from volseg.geometry.volume import Mask
from volseg.io.volumes import write_mask


@dataclass(frozen=True, eq=False)
class PredictedMask(Mask):
    """A mask that a model predicted, on the scan's own grid.

    Attributes:
        classes: Class name -> value in ``labels``, background included.
        source: The scan's first file, whose header a saved mask gets; ``None`` for a scan in memory.
    """

    classes: Mapping[str, int] = field(default_factory=dict)
    source: Path | None = None

    def save(self, path: str | Path) -> None:
        """Write the mask in the format of the file name's ending, with the names and colours of the classes.

        Args:
            path: For example ``x.nii.gz``, ``x.seg.nrrd``, ``x.mha`` or ``x.mgz``; an existing file is replaced.

        Raises:
            OutputError: The file cannot be written, or masks are not written in this format.
            DataError: The scan's file cannot be read any more.
        """
        write_mask(path, self, self.source, self.classes)
