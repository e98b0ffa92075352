"""Functions that run inside nnU-Net's own environment; nothing of volseg is imported."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from shared.measure import cost_of

TRAINER, CONFIGURATION = "nnUNetTrainer", "3d_fullres"


def make_model(planned: str, raw: str, target: str) -> dict[str, Any]:
    """Build the planned network with random weights and store it in the layout of nnU-Net's training.

    Args:
        planned: Folder of ``nnUNetPlans.json``.
        raw: Folder of ``dataset.json``.
        target: Model folder.
    """
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
        manager.get_configuration(CONFIGURATION),
        len(dataset["channel_names"]),
        manager.get_label_manager(dataset).num_segmentation_heads,
        enable_deep_supervision=False,
    )
    checkpoint = {
        "network_weights": network.state_dict(),
        "init_args": {"configuration": CONFIGURATION, "fold": 0, "plans": plans, "dataset_json": dataset},
        "trainer_name": TRAINER,
        "inference_allowed_mirroring_axes": (0, 1, 2),  # as its trainer sets them for a 3D patch
    }
    torch.save(checkpoint, folder / "fold_0" / "checkpoint_final.pth")
    return {"parameters": sum(parameter.numel() for parameter in network.parameters())}


def plan(number: int) -> dict[str, Any]:
    """Plan a data set whose fingerprint exists, in the folders of nnU-Net's variables."""
    from nnunetv2.experiment_planning.plan_and_preprocess_api import plan_experiment_dataset

    plan_experiment_dataset(number)
    return {}


def export(
    folder: str,
    logits_file: str,
    mask_file: str,
    threads: int,
    shape: list[int],
    spacing_mm: list[float],
    working_spacing_mm: list[float],
) -> dict[str, Any]:
    """Restore logits by nnU-Net's own function; return seconds and memory above the logits.

    Args:
        folder: Model folder, for its plans.
        logits_file: ``.npy``, (K, D, H, W) float32.
        mask_file: Output, ``.npy``.
        threads: Threads of torch.
        shape: Voxels of the scan.
        spacing_mm: Voxel size of the scan.
        working_spacing_mm: Voxel size of the logits.
    """
    import numpy as np
    import torch
    from nnunetv2.inference.export_prediction import (
        convert_predicted_logits_to_segmentation_with_correct_shape as convert,
    )
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    logits = torch.from_numpy(np.load(logits_file))
    plans = json.loads((Path(folder) / "plans.json").read_text())
    plans["configurations"][CONFIGURATION]["spacing"] = working_spacing_mm
    plans["transpose_forward"] = plans["transpose_backward"] = [0, 1, 2]
    manager = PlansManager(plans)
    labels = {"background": 0} | {f"organ {k}": k for k in range(1, len(logits))}
    dataset = {"channel_names": {"0": "CT"}, "labels": labels, "file_ending": ".nii.gz"}
    properties = {
        "spacing": spacing_mm,
        "shape_before_cropping": tuple(shape),
        "shape_after_cropping_and_before_resampling": tuple(shape),
        "bbox_used_for_cropping": [[0, n] for n in shape],
    }
    parts = (manager, manager.get_configuration(CONFIGURATION), manager.get_label_manager(dataset), properties)
    cost, mask = cost_of(lambda: convert(logits, *parts, num_threads_torch=threads))
    np.save(mask_file, mask)
    return {"seconds": cost.seconds, "above_logits_bytes": cost.above_bytes, "process_bytes": cost.peak_bytes}
