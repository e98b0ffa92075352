"""A scan through MONAI's transforms, sliding window and inversion, as MONAI's bundles predict."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from card.device import PRECISIONS
from prediction.monai_inferer import monai_logits, with_neighbours
from volseg.models.contracts import SegmentationNetwork
from volseg.planning.plan import Plan

BATCH = 4


@torch.inference_mode()
def predict_as_bundles(
    model: SegmentationNetwork,
    plan: Plan,
    scan: Path,
    output: Path,
    device: str,
    precision: str,
    finished: Callable[[str], None],
) -> None:
    """Read, resample and normalise a CT, predict it, invert the logits to its grid, take the argmax and write the mask.

    All but reading and writing runs on the device.

    Args:
        model: Network on the device.
        plan: Plan of one CT channel.
        scan: The file.
        output: Folder of the mask.
        device: Device.
        precision: ``bf16`` or ``float32``.
        finished: Called with the name of each stage at its end, as volseg names them.
    """
    from monai.data import MetaTensor
    from monai.transforms import (
        AsDiscreted,
        Compose,
        EnsureChannelFirstd,
        EnsureTyped,
        Invertd,
        LoadImaged,
        Orientationd,
        SaveImaged,
        ScaleIntensityRanged,
        Spacingd,
    )  # fmt: skip

    data: dict[str, Any] = Compose([LoadImaged("image"), EnsureChannelFirstd("image")])({"image": scan})
    finished("read")
    preparation = Compose(
        [
            EnsureTyped("image", device=torch.device(device)),
            Orientationd("image", axcodes="RAS"),
            Spacingd("image", pixdim=plan.spacing_mm),
            ScaleIntensityRanged("image", **_intensity(plan), clip=True),
        ]
    )
    data = preparation(data)
    finished("prepare")
    image = data["image"]  # (C, W, H, D)
    stacked = with_neighbours(image.as_tensor().movedim(3, 1), model.halo)
    with torch.autocast(torch.device(device).type, PRECISIONS[precision], enabled=precision != "float32"):
        logits = monai_logits(model, stacked, plan.patch_size, BATCH).float()  # (K, D, H, W), the axes of the image
    data["logits"] = MetaTensor(logits.movedim(1, 3), meta=image.meta, applied_operations=image.applied_operations)
    finished("network")
    inverse = Invertd("logits", preparation, orig_keys="image", nearest_interp=False, device=torch.device(device))
    data = AsDiscreted("logits", argmax=True)(inverse(data))
    finished("restore")
    SaveImaged("logits", output_dir=output, output_postfix="", output_dtype=np.uint8, print_log=False)(data)
    finished("write")


def _intensity(plan: Plan) -> dict[str, float]:
    """Return clipping and z-score of the plan's CT as the ranges of MONAI's transform."""
    rule = plan.intensity[0]
    low, high, mean, std = (float(value) for value in (rule.clip_low, rule.clip_high, rule.mean, rule.std))
    return {"a_min": low, "a_max": high, "b_min": (low - mean) / std, "b_max": (high - mean) / std}
