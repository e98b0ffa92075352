"""Settings of a prediction."""

from __future__ import annotations

from dataclasses import dataclass

from volseg.postprocessing.rules import Postprocessing


@dataclass(frozen=True, kw_only=True)
class PredictOptions:
    """Settings of a prediction that a caller may choose per scan.

    Attributes:
        tta: Average over mirrored copies along the plan's mirror axes.
        skip_air: Skip windows that contain only air, where the plan allows it.
        max_memory_bytes: Limit on the host's memory beyond the model, the stored scan and the mask. ``None``: 4 GB, or
            the smallest possible amount where 4 GB are not enough. Any other value is a hard limit on the estimate.
        max_device_memory_bytes: The same for a GPU. ``None``: what is free there, less a margin.
        resample_channels: Resample channels on other grids onto that of the first; otherwise such a scan fails.
        postprocessing: Postprocessing of the masks; ``None`` takes that of the model.
    """

    tta: bool = False
    skip_air: bool = True
    max_memory_bytes: int | None = None
    max_device_memory_bytes: int | None = None
    resample_channels: bool = False
    postprocessing: Postprocessing | None = None
