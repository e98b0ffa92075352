"""The loss: Dice plus cross-entropy with deep supervision and an ignore label."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from monai.losses.dice import DiceLoss
from torch import Tensor

from volseg.preprocessing.preprocess import IGNORE


class SegmentationLoss:
    """Soft Dice over foreground classes plus cross-entropy, averaged over the decoder's levels.

    Dice sums over the whole batch, so that patches without a class do not suppress it. The weight of each coarser level
    is half that of the level before. The loss is computed in float32 in every precision of the network.

    Source: Isensee et al., nnU-Net, Nature Methods 2021 (batch Dice + cross-entropy, deep supervision weights).
    """

    def __init__(self) -> None:
        self._dice = DiceLoss(include_background=False, batch=True)

    def __call__(self, outputs: Sequence[Tensor], target: Tensor) -> Tensor:
        """Compute the loss of all levels.

        Args:
            outputs: Logits ``(B, K, D, H, W)``, full resolution first, then coarser levels.
            target: Class indices ``(B, D, H, W)``, int64; voxels of -1 are ignored.

        Returns:
            A scalar.
        """
        weights = [0.5**level for level in range(len(outputs))]
        losses = [w * self._level(logits.float(), target) for w, logits in zip(weights, outputs, strict=True)]
        return torch.stack(losses).sum() / sum(weights)

    def _level(self, logits: Tensor, target: Tensor) -> Tensor:
        if logits.shape[2:] != target.shape[1:]:
            size = tuple(logits.shape[2:])
            target = F.interpolate(target[:, None].float(), size=size, mode="nearest-exact")[:, 0].long()
        valid = (target != IGNORE)[:, None]  # (B, 1, D, H, W)
        one_hot = F.one_hot(target.clamp(min=0), logits.shape[1]).movedim(-1, 1) * valid  # (B, K, D, H, W)
        dice: Tensor = self._dice(logits.softmax(dim=1) * valid, one_hot.to(logits.dtype))
        cross_entropy = F.cross_entropy(logits, target, ignore_index=IGNORE, reduction="sum")
        return dice + cross_entropy / valid.sum().clamp(min=1)
