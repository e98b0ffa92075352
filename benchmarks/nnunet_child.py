"""What has to run inside nnU-Net's own environment; called by ``nnunet.py``, imports nothing of volseg.

nnunet_child.py model PLANNED RAW TARGET CONFIGURATION
nnunet_child.py export MODEL LOGITS MASK THREADS JSON
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from processes import memory_bytes, peak_bytes, reset_peak

TRAINER = "nnUNetTrainer"


def model(planned: str, raw: str, target: str, configuration: str) -> dict[str, Any]:
    """Build the planned network with random weights and store it in the layout that training leaves."""
    import torch
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    folder = Path(target)
    (folder / "fold_0").mkdir(parents=True, exist_ok=True)
    shutil.copyfile(Path(planned) / "nnUNetPlans.json", folder / "plans.json")
    shutil.copyfile(Path(raw) / "dataset.json", folder / "dataset.json")
    plans, dataset = (json.loads((folder / name).read_text()) for name in ("plans.json", "dataset.json"))
    manager = PlansManager(plans)
    torch.manual_seed(0)
    network = nnUNetTrainer.build_network_architecture(
        manager,
        manager.get_configuration(configuration),
        len(dataset["channel_names"]),
        manager.get_label_manager(dataset).num_segmentation_heads,
        enable_deep_supervision=False,
    )
    checkpoint = {
        "network_weights": network.state_dict(),
        "init_args": {"configuration": configuration, "fold": 0, "plans": plans, "dataset_json": dataset},
        "trainer_name": TRAINER,
        "inference_allowed_mirroring_axes": (0, 1, 2),  # what the trainer sets for a 3D patch
    }
    torch.save(checkpoint, folder / "fold_0" / "checkpoint_final.pth")
    return {"parameters": sum(parameter.numel() for parameter in network.parameters())}


def export(folder: str, logits_file: str, mask_file: str, threads: str, geometry: str) -> dict[str, Any]:
    """Restore logits by nnU-Net's own function; time and memory above the logits.

    Args:
        folder: The model folder, for its plans.
        logits_file: ``.npy``, (K, D, H, W) float32.
        mask_file: Where the mask goes, ``.npy``.
        threads: Threads of torch.
        geometry: JSON with ``shape`` and ``spacing_mm`` of the scan and ``working_spacing_mm``.
    """
    import numpy as np
    import torch
    from nnunetv2.inference.export_prediction import (
        convert_predicted_logits_to_segmentation_with_correct_shape as convert,
    )
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    sizes = json.loads(geometry)
    logits = torch.from_numpy(np.load(logits_file))
    plans = json.loads((Path(folder) / "plans.json").read_text())
    plans["configurations"]["3d_fullres"]["spacing"] = sizes["working_spacing_mm"]
    plans["transpose_forward"] = plans["transpose_backward"] = [0, 1, 2]
    manager = PlansManager(plans)
    labels = {"background": 0} | {f"organ {k}": k for k in range(1, len(logits))}
    dataset = {"channel_names": {"0": "CT"}, "labels": labels, "file_ending": ".nii.gz"}
    properties = {
        "spacing": sizes["spacing_mm"],
        "shape_before_cropping": tuple(sizes["shape"]),
        "shape_after_cropping_and_before_resampling": tuple(sizes["shape"]),
        "bbox_used_for_cropping": [[0, n] for n in sizes["shape"]],
    }
    parts = (manager, manager.get_configuration("3d_fullres"), manager.get_label_manager(dataset), properties)
    reset_peak()
    before = memory_bytes()
    started = time.perf_counter()
    mask = convert(logits, *parts, num_threads_torch=int(threads))
    seconds = time.perf_counter() - started
    peak = peak_bytes()
    np.save(mask_file, mask)
    return {"seconds": seconds, "above_logits_bytes": peak - before, "process_bytes": peak}


if __name__ == "__main__":
    print(json.dumps({"model": model, "export": export}[sys.argv[1]](*sys.argv[2:])))
