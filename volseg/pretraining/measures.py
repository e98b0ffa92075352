"""Measures that tell a collapse: spread of the teacher's assignments, rank of its features, and what they know.

Source: RankMe: Garrido et al. 2023, "RankMe: Assessing the Downstream Performance of Pretrained Self-Supervised
Representations by Their Rank"; effective rank: Roy and Vetterli 2007.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from volseg.planning.fingerprint import spread
from volseg.pretraining.slices import SliceSource, ViewShape
from volseg.pretraining.state import PretrainingState, rgb
from volseg.pretraining.views import resized

SLICES = 12
"""Slices of a scan along each axis."""
NEIGHBOURS = 5
BATCH = 64
EPS = 1e-12


@dataclass(frozen=True)
class MeasuredSlices:
    """Class tokens of slices, and where the slices lie.

    Attributes:
        tokens: ``(N, E)`` of the teacher.
        scores: ``(N, K)`` of the teacher.
        axis: ``(N,)``.
        position: ``(N,)``: 0 is the first slice along the axis, 1 the last.
    """

    tokens: Tensor
    scores: Tensor
    axis: Tensor
    position: Tensor


def measure(
    state: PretrainingState,
    shape: ViewShape,
    known: Sequence[SliceSource],
    held_out: Sequence[SliceSource],
    temperature: float,
) -> dict[str, float | None]:
    """Measure the teacher on unchanged slices of held-out scans.

    Args:
        state: State of the run.
        shape: Size of the views.
        known: Scans that are trained on, whose slices are the neighbours.
        held_out: Scans that are not.
        temperature: Temperature of the teacher.

    Returns:
        ``val_rankme`` and ``val_effective_rank`` (of centred tokens); ``val_assignment_entropy``, the mean entropy of a
        slice's assignment, ``val_marginal_entropy``, that of the mean assignment (at most ``ln K``), and
        ``val_assignment_kl``, their difference: the mean divergence of an assignment from the mean one, 0 after a
        collapse. ``val_position_error``: mean absolute error of a slice's position by its nearest neighbours, as a
        fraction of the volume, and ``val_position_error_of_mean`` without them; ``val_axis_accuracy``, ``None`` if
        there are only slices along one axis.
    """
    bank, queries = (encoded(state, shape, scans) for scans in (known, held_out))
    assigned = torch.softmax(queries.scores / temperature, dim=1)
    mean = assigned.mean(dim=0)
    single, marginal = (float(_entropy(each).mean()) for each in (assigned, mean[None]))
    position, of_mean, accuracy = nearest_neighbours(bank, queries)
    return {
        "val_rankme": round(effective_rank(queries.tokens), 3),
        "val_effective_rank": round(effective_rank(queries.tokens - queries.tokens.mean(dim=0)), 3),
        "val_assignment_entropy": round(single, 4),
        "val_marginal_entropy": round(marginal, 4),
        "val_assignment_kl": round(marginal - single, 4),
        "val_position_error": round(position, 4),
        "val_position_error_of_mean": round(of_mean, 4),
        "val_axis_accuracy": None if accuracy is None else round(accuracy, 4),
    }


@torch.no_grad()
def encoded(state: PretrainingState, shape: ViewShape, sources: Sequence[SliceSource]) -> MeasuredSlices:
    """Encode evenly spaced slices along all used axes: the square in the middle of each, unchanged."""
    pixels, images, axes, positions = shape.patch * shape.global_tokens, [], [], []
    for source in sources:
        for axis in source.axes:
            (rows, columns), _ = source.plane(axis)
            size = source.size_of(axis, shape.side)
            start = (rows - size[0]) // 2, (columns - size[1]) // 2
            count = source.scan.shape[axis]
            for index in spread(count, SLICES).tolist():
                images.append(resized(source.piece(0, axis, index, start, size), pixels))
                axes.append(axis)
                positions.append(index / max(1, count - 1))
    outputs = []
    for part in torch.split(torch.stack(images), BATCH):
        tokens, _ = state.teacher.encoder.class_and_patch_tokens(rgb(part.to(state.device)))
        outputs.append((tokens.cpu(), state.teacher.head(tokens).cpu()))
    tokens, scores = (torch.cat(parts) for parts in zip(*outputs, strict=True))
    return MeasuredSlices(tokens, scores, torch.tensor(axes), torch.tensor(positions))


def nearest_neighbours(bank: MeasuredSlices, queries: MeasuredSlices) -> tuple[float, float, float | None]:
    """Predict position and axis of slices by the most similar slices of other scans.

    Returns:
        Mean absolute error of the position, from neighbours along the same axis; the same of the mean position of
        all of these; share of slices whose axis most neighbours have, ``None`` with a single axis.
    """
    similar = F.normalize(queries.tokens, dim=1) @ F.normalize(bank.tokens, dim=1).T  # (queries, bank)
    errors, of_mean = [], []
    axes = sorted({*bank.axis.tolist()})
    for axis in axes:
        ours, theirs = queries.axis == axis, bank.axis == axis
        positions, truth = bank.position[theirs], queries.position[ours]
        nearest = similar[ours][:, theirs].topk(min(NEIGHBOURS, len(positions)), dim=1).indices
        errors.append((positions[nearest].mean(dim=1) - truth).abs())
        of_mean.append((positions.mean() - truth).abs())
    predicted = bank.axis[similar.topk(min(NEIGHBOURS, len(bank.axis)), dim=1).indices].mode(dim=1).values
    accuracy = float((predicted == queries.axis).float().mean()) if len(axes) > 1 else None
    return float(torch.cat(errors).mean()), float(torch.cat(of_mean).mean()), accuracy


def effective_rank(tokens: Tensor) -> float:
    """Return the exponential of the entropy of the singular values, scaled to sum 1: 1 to min(N, E).

    Args:
        tokens: ``(N, E)``.
    """
    values = np.linalg.svd(tokens.double().numpy(), compute_uv=False)
    if not np.isfinite(values).all() or values.sum() <= EPS:
        return 1.0
    return float(torch.exp(_entropy(torch.from_numpy(values / values.sum())[None]))[0])


def _entropy(shares: Tensor) -> Tensor:
    """Return the entropy of each row, in nats."""
    return -torch.xlogy(shares, shares).sum(dim=1)
