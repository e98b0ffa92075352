"""DINOv2's losses: class tokens of views, masked patch tokens, and the spread of the class tokens.

Source: Oquab et al. 2023, "DINOv2: Learning Robust Visual Features without Supervision";
github.com/facebookresearch/dinov2, ``dinov2/loss`` and ``dinov2/train/ssl_meta_arch.py``.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from volseg.training.ranks import ALONE, Ranks

STUDENT_TEMPERATURE = 0.1
SINKHORN_ITERATIONS = 3
EPS = 1e-8


@torch.no_grad()
def sinkhorn_knopp(scores: Tensor, temperature: float, ranks: Ranks = ALONE) -> Tensor:
    """Return assignments of samples to prototypes that use all prototypes equally.

    Rows and columns are normalised in turn, with the samples of all processes.

    Args:
        scores: ``(N, K)`` of the teacher, N samples of this process.
        temperature: Divides the scores.
        ranks: The processes of the run.

    Returns:
        ``(N, K)`` float32; each row sums to 1, and each column about to the number of all samples / K.

    Source: Caron et al. 2020, "Unsupervised Learning of Visual Features by Contrasting Cluster Assignments".
    """
    logits = scores.float() / temperature
    highest = logits.max() if len(logits) else logits.new_full((), -torch.inf)
    assigned = torch.exp(logits - ranks.maximum(highest))  # the factor cancels, and nothing overflows
    samples, prototypes = ranks.sum(assigned.new_full((), len(assigned))), assigned.shape[1]
    for _ in range(SINKHORN_ITERATIONS):
        of_prototypes = ranks.sum(assigned.sum(dim=0, keepdim=True))
        assigned = assigned / of_prototypes.clamp(min=torch.finfo(torch.float32).tiny) / prototypes
        assigned = assigned / assigned.sum(dim=1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny) / samples
    return assigned * samples


def cross_entropy(scores: Tensor, targets: Tensor) -> Tensor:
    """Return the cross-entropy of each sample: student's scores ``(N, K)`` and the teacher's targets ``(N, K)``."""
    return -(targets * F.log_softmax(scores.float() / STUDENT_TEMPERATURE, dim=-1)).sum(dim=-1)


def class_token_losses(
    global_scores: Sequence[Tensor], local_scores: Sequence[Tensor], targets: Sequence[Tensor]
) -> tuple[Tensor, Tensor]:
    """Return the loss of class tokens: each view of the student against each global view of the teacher but itself.

    Args:
        global_scores: ``(B, K)`` of the student for each of two global views.
        local_scores: The same for each local view.
        targets: ``(B, K)`` of the teacher for each global view.

    Returns:
        The parts of global and of local views; their sum is the mean over all pairs of views.
    """
    pairs = len(targets) * (len(targets) - 1) + len(local_scores) * len(targets)
    crossed = [
        cross_entropy(scores, target).mean()
        for number, scores in enumerate(global_scores)
        for other, target in enumerate(targets)
        if other != number
    ]
    local = [cross_entropy(scores, target).mean() for scores in local_scores for target in targets]
    zero = global_scores[0].new_zeros(())
    return torch.stack(crossed).sum() / pairs, (torch.stack(local).sum() if local else zero) / pairs


def patch_loss(scores: Tensor, targets: Tensor, masked: Tensor, places: Tensor) -> Tensor:
    """Return the loss of masked patch tokens: a mean over the masked patches of each image, then over all images.

    Args:
        scores: ``(M, K)`` of the student, for the masked patches of all images in order.
        targets: ``(M, K)`` of the teacher.
        masked: ``(B, N)``: which patches are masked, M in all. An image without any adds 0.
        places: ``(M,)``: where they are in the flat mask.
    """
    weight = 1 / masked.sum(dim=1, keepdim=True).clamp(min=1)
    return (cross_entropy(scores, targets) * weight.expand_as(masked).flatten()[places]).sum() / len(masked)


def koleo_loss(tokens: Tensor) -> Tensor:
    """Return the Kozachenko-Leonenko regulariser: minus the mean logarithm of the distance to the nearest neighbour.

    Args:
        tokens: ``(B, E)`` class tokens of different images; they are scaled to length 1. One image alone gives 0.

    Source: Sablayrolles et al. 2018, "Spreading Vectors for Similarity Search".
    """
    if len(tokens) < 2:
        return tokens.sum() * 0
    units = F.normalize(tokens.float(), eps=EPS, dim=-1)
    similarity = (units @ units.T).detach().fill_diagonal_(-2)  # below that of opposite tokens
    distance = F.pairwise_distance(units, units[similarity.argmax(dim=1)], eps=EPS)
    return -torch.log(distance + EPS).mean()


def of_all_ranks(tokens: Tensor, ranks: Ranks) -> Tensor:
    """Return the tokens ``(B, E)`` of all processes, ``(size * B, E)``; gradients pass through."""
    if ranks.size == 1:
        return tokens
    own = tokens.float()
    rows = own.new_zeros(ranks.size, *own.shape)
    rows = torch.cat([rows[: ranks.rank], own[None], rows[ranks.rank + 1 :]])
    return ranks.sum(rows).flatten(0, 1)
