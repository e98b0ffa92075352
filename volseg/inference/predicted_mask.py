"""A mask with what its file holds beside the voxels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from volseg.errors import OutputError
from volseg.geometry.volume import Mask
from volseg.io.paths import exists
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

    def save(self, path: str | Path, *, overwrite: bool = False) -> None:
        """Write the mask in the format of the file name's ending, with the names and colours of the classes.

        Args:
            path: For example ``x.nii.gz``, ``x.seg.nrrd``, ``x.mha`` or ``x.mgz``.
            overwrite: Replace an existing file; never that of the scan.

        Raises:
            OutputError: The file exists, cannot be written, or masks are not written in this format.
            DataError: The scan's file cannot be read any more.
        """
        path = Path(path)
        if self.source is not None and path.resolve() == self.source.resolve():
            raise OutputError("the mask would replace its scan", file=path, hint="choose another file")
        if exists(path) and not overwrite:
            hint = "choose another file, or give overwrite=True"
            raise OutputError("the file exists and is not replaced", file=path, hint=hint)
        write_mask(path, self, self.source, self.classes)
