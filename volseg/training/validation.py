"""Validation during training: whole volumes, predicted and scored on their own grids as after training."""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import fmean
from typing import Any

import torch

from volseg.geometry.volume import Mask
from volseg.inference.cohort.shard import shard_of
from volseg.inference.predictor import Predictor
from volseg.io.cases import Case
from volseg.io.checks import read_label
from volseg.metrics import case_scores
from volseg.models.contracts import SegmentationNetwork
from volseg.parallel import Progress
from volseg.training.experiment import Experiment
from volseg.training.ranks import ALONE, Ranks

ShowMask = Callable[[Case, Mask, Mask], None]


def validate(
    model: SegmentationNetwork,
    experiment: Experiment,
    device: torch.device,
    limit: int,
    progress: Progress | None = None,
    ranks: Ranks = ALONE,
    show: ShowMask | None = None,
) -> dict[str, Any]:
    """Predict and score the first ``limit`` held-out cases; voxels of the ignore label do not count.

    Several processes share out the cases by size, and all return the result of all cases.

    Args:
        model: The network.
        experiment: Held-out cases, plan and postprocessing.
        device: Device of the network.
        limit: Most cases.
        progress: Called after every case of this process with (done, in all).
        ranks: The processes of the run.
        show: Called with every case of this process, its reference and its mask.

    Returns:
        ``val_dice`` and ``val_hd95`` (mm): means over cases, then over foreground classes; ``val_dice_by_class``;
        ``val_cases``.
    """
    plan = experiment.plan
    labels = plan.label_map.classes
    cases = experiment.val_cases[:limit]
    tolerance_mm = max(case.grids.tolerance_mm for case in cases)
    predictor = Predictor.from_model(model, plan, device, experiment.postprocessing, tolerance_mm)
    scores_by_case = {}
    own_cases = shard_of(cases, ranks.shard)
    for done, case in enumerate(own_cases, start=1):
        mask = predictor.predict(case.images)
        reference = read_label(case, mask.grid)
        scores_by_case[case.id] = case_scores(
            mask.labels,
            reference.labels,
            reference.grid.spacing_mm,
            labels,
            ignore_label=plan.ignore_label,
        )
        if show is not None:
            show(case, reference, mask)
        if progress is not None:
            progress(done, len(own_cases))
    for others in ranks.gathered(scores_by_case):
        scores_by_case |= others
    scores = [scores_by_case[case.id] for case in cases]
    dice = {name: _mean([score[name]["dice"] for score in scores]) for name in labels}
    hd95 = [_mean([score[name]["hd95"] for score in scores]) for name in labels]
    return {
        "val_dice": round(_mean(list(dice.values())), 5),
        "val_hd95": round(_mean(hd95), 4),
        "val_dice_by_class": {name: round(value, 5) for name, value in dice.items()},
        "val_cases": len(cases),
    }


def _mean(values: list[float]) -> float:
    """Mean of the defined scores; a class that is absent in reference and prediction has none."""
    defined = [value for value in values if not math.isnan(value)]
    return fmean(defined) if defined else float("nan")
