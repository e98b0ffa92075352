"""The training losses: Dice, cross-entropy and focal, with class weights, deep supervision and ignored voxels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from volseg.config.schema import TrainConfig
from volseg.errors import ConfigError, suggestion
from volseg.models.contracts import NetworkPlan
from volseg.preprocessing.preprocess import IGNORE
from volseg.training.ranks import ALONE, Ranks

SMOOTHING = 1e-5
"""Added to numerator and denominator of Dice, which are 0 for a class that is neither present nor predicted."""


class SegmentationLoss(nn.Module):
    """Soft Dice over the foreground classes, a loss of each voxel, or their sum, averaged over the decoder's levels.

    Classes that exclude each other share a softmax. Regions have a sigmoid each, no background, and binary
    cross-entropy or focal loss, averaged over the regions.

    The loss of a voxel is cross-entropy or focal loss; its mean is weighted by the weight of each voxel's true class,
    as in `torch.nn.CrossEntropyLoss`. The mean of Dice is weighted by class, too. Ignored voxels are left out of all
    sums: they are masked here, because MONAI's own ``ignore_index`` divides the focal loss by another number with it
    than without. The weight of each coarser level is half that of the level before. The loss is computed in float32 in
    every precision of the network, or in float64.

    Several processes each compute the part of the loss that their samples add, and its gradients: both add up to those
    of all samples together. The overlaps of ``batch_dice`` are summed over all processes, and so must be ``totals``.

    Source: Isensee et al., nnU-Net, Nature Methods 2021 (Dice + cross-entropy, weights of deep supervision); Lin et
    al., Focal Loss for Dense Object Detection, ICCV 2017.

    Args:
        kind: ``dice_ce``, ``dice_focal``, ``dice``, ``ce`` or ``focal``.
        batch_dice: Sum the overlaps of Dice over the whole batch, so that a patch without a class does not suppress
            the class; otherwise Dice is computed for every patch.
        class_weights: Weight of each class, background first; only their ratios matter. ``None`` weighs all alike.
        focal_gamma: Exponent of the focal loss.
        ranks: The processes that share out each batch.
        region_indices: Class indices of each region; nothing where classes exclude each other. The class weights are
            then those of the regions.
    """

    class_weights: Tensor | None
    members: Tensor | None

    def __init__(
        self,
        kind: str = "dice_ce",
        *,
        batch_dice: bool = True,
        class_weights: Sequence[float] | None = None,
        focal_gamma: float = 2.0,
        ranks: Ranks = ALONE,
        region_indices: Sequence[Sequence[int]] = (),
    ) -> None:
        super().__init__()
        self._batch_dice = batch_dice
        self._ranks = ranks
        self._terms = kind.split("_")
        weights = None if class_weights is None else torch.tensor(class_weights, dtype=torch.float32)
        exclusive = not region_indices
        if weights is not None and not exclusive:
            weights = weights / weights.mean()
        self.register_buffer("class_weights", weights)
        self.register_buffer("members", None if exclusive else _membership(region_indices))
        if "focal" in self._terms:
            from monai.losses.focal_loss import FocalLoss  # takes longer to import than all else of a training

            self._focal = FocalLoss(use_softmax=exclusive, gamma=focal_gamma, reduction="none")

    def forward(
        self,
        outputs: Sequence[Tensor],
        target: Tensor | Sequence[Tensor],
        share: float = 1.0,
        totals: Tensor | None = None,
    ) -> Tensor:
        """Compute the loss of all levels.

        The losses of the parts of a batch, with the share of each and the totals of the whole batch, add up to the loss
        of the whole batch; only ``batch_dice`` sums the overlaps within each part.

        Args:
            outputs: Logits ``(B, K, D, H, W)``, full resolution first, then coarser levels.
            target: Class indices ``(B, D, H, W)``, int64, or those of all levels; voxels of -1 are ignored.
            share: Fraction of the samples of the whole batch that these are.
            totals: Sum of the voxels' weights in the whole batch at each level, as `voxel_weights` gives them for each
                part; by default these samples are the whole batch.

        Returns:
            A scalar.
        """
        targets = resized(target, [logits.shape[2:] for logits in outputs]) if isinstance(target, Tensor) else target
        totals = self.voxel_weights(targets) if totals is None else totals
        levels = [
            (logits.to(torch.promote_types(logits.dtype, torch.float32)), level, level != IGNORE)
            for logits, level in zip(outputs, targets, strict=True)
        ]
        losses = []  # of each term, (levels,)
        for term in self._terms:
            if term == "dice":
                losses.append(self._dice(torch.stack([self._overlaps(*level) for level in levels])) * share)
            else:
                voxels = self._cross_entropy if term == "ce" else self._focal_loss
                sums = torch.stack([voxels(*level).sum() for level in levels])
                losses.append(sums / totals.clamp(min=torch.finfo().tiny))
        weights = [0.5**level for level in range(len(levels))]
        weighted = [weight * loss for weight, loss in zip(weights, torch.stack(losses).sum(dim=0), strict=True)]
        return torch.stack(weighted).sum() / sum(weights)

    def voxel_weights(self, targets: Sequence[Tensor]) -> Tensor:
        """Return the sum of the weights of the voxels that are not ignored, at each level.

        Args:
            targets: Class indices ``(B, D, H, W)`` of each level.

        Returns:
            ``(levels,)`` float32.
        """
        return torch.stack([self._weights(target).sum() for target in targets])

    def _weights(self, target: Tensor) -> Tensor:
        """Return the weight of each voxel (B, D, H, W): that of its class, 0 if it is ignored; 1 with regions."""
        valid = target != IGNORE
        if self.class_weights is None or self.members is not None:
            return valid.float()
        return self.class_weights[target.clamp(min=0)] * valid

    def _overlaps(self, logits: Tensor, target: Tensor, valid: Tensor) -> Tensor:
        """Return overlap, prediction and reference of each foreground class or region: (3, K'), or (3, B, K')."""
        probabilities = logits.softmax(dim=1) if self.members is None else logits.sigmoid()
        first = 1 if self.members is None else 0  # without the background
        probabilities, truth = probabilities[:, first:] * valid[:, None], self._truth(logits, target, valid, first)
        axes = (0, 2, 3, 4) if self._batch_dice else (2, 3, 4)
        return torch.stack([(probabilities * truth).sum(axes), probabilities.sum(axes), truth.sum(axes)])

    def _dice(self, sums: Tensor) -> Tensor:
        """Compute soft Dice of each level from (levels, 3, K') or (levels, 3, B, K').

        It is MONAI's DiceLoss, which has no place where the overlaps of several processes could be summed.
        """
        overlap, predicted, reference = (self._ranks.sum(sums) if self._batch_dice else sums).unbind(dim=1)
        wrong = 0.5 * (predicted - overlap), 0.5 * (reference - overlap)
        dice = 1 - (2 * overlap + SMOOTHING) / (2 * (overlap + wrong[0] + wrong[1]) + SMOOTHING)
        if self.class_weights is not None:
            weights = self.class_weights[-sums.shape[-1] :]
            dice = dice * (weights / weights.mean())
        return dice.flatten(1).mean(dim=1)

    def _cross_entropy(self, logits: Tensor, target: Tensor, valid: Tensor) -> Tensor:
        """Return the weighted cross-entropy of each voxel (B, D, H, W), 0 if it is ignored."""
        if self.members is None:
            if torch.are_deterministic_algorithms_enabled():  # that of volumes is not, on CUDA: voxels become a list
                logits, target = logits.movedim(1, -1).flatten(0, -2), target.flatten()
            return F.cross_entropy(logits, target, self.class_weights, ignore_index=IGNORE, reduction="none")
        truth = self._truth(logits, target, valid)
        losses = F.binary_cross_entropy_with_logits(logits, truth, reduction="none")
        return self._weighted(losses).mean(dim=1) * valid

    def _focal_loss(self, logits: Tensor, target: Tensor, valid: Tensor) -> Tensor:
        """Return the weighted focal loss of each voxel (B, D, H, W), 0 if it is ignored."""
        losses = self._weighted(self._focal(logits, self._truth(logits, target, valid)))
        return (losses.sum(dim=1) if self.members is None else losses.mean(dim=1)) * valid

    def _weighted(self, losses: Tensor) -> Tensor:
        """Return the losses (B, K, D, H, W) times the weight of each class or region."""
        return losses if self.class_weights is None else losses * self.class_weights.view(-1, 1, 1, 1)

    def _truth(self, logits: Tensor, target: Tensor, valid: Tensor, first: int = 0) -> Tensor:
        """Return whether each voxel is of each class from the first on, or in each region, as numbers; 0 if ignored."""
        if self.members is None:
            classes = torch.arange(first, logits.shape[1], device=target.device).view(1, -1, 1, 1, 1)
            return (target[:, None] == classes).to(logits.dtype)
        inside = self.members[:, target.clamp(min=0)].movedim(0, 1)
        return (inside & valid[:, None]).to(logits.dtype)


def build_loss(settings: TrainConfig, plan: NetworkPlan, ranks: Ranks = ALONE) -> SegmentationLoss:
    """Build the loss that a configuration describes.

    Args:
        settings: The configuration.
        plan: The plan, which names the classes or regions.
        ranks: The processes that share out each batch.

    Raises:
        ConfigError: ``train.class_weights`` do not fit the classes.
    """
    background = not plan.region_indices
    return SegmentationLoss(
        settings.loss,
        batch_dice=settings.batch_dice,
        class_weights=read_class_weights(settings.class_weights, plan.class_names, background=background),
        focal_gamma=settings.focal_gamma,
        region_indices=plan.region_indices,
        ranks=ranks,
    )


def read_class_weights(
    setting: Mapping[str, float] | Sequence[float] | None, class_names: Sequence[str], *, background: bool = True
) -> tuple[float, ...] | None:
    """Return the weight of each output of the network, or ``None`` without the setting ``train.class_weights``.

    Args:
        setting: Name -> weight, 1 for classes that are not named; or one weight for each output.
        class_names: Names of the outputs.
        background: Whether the first of them is the background.

    Raises:
        ConfigError: A name is not that of a class, there are more or fewer weights than classes, or all classes but the
            background have the weight 0.
    """
    if setting is None:
        return None
    expected = ", ".join(class_names)
    if isinstance(setting, Mapping):
        unknown = [name for name in setting if name not in class_names]
        if unknown:
            similar = suggestion(unknown[0], class_names)
            hint = f"did you mean {similar}?" if similar else None
            problem = "train.class_weights contains an unknown name"
            raise ConfigError(problem, found=unknown[0], expected=expected, hint=hint)
        setting = [setting.get(name, 1.0) for name in class_names]
    if len(setting) != len(class_names):
        problem = "train.class_weights needs one weight for each class" + ", background first" * background
        raise ConfigError(problem, found=list(setting), expected=f"{len(class_names)} weights: {expected}")
    if not any(setting[background:]):
        problem = "train.class_weights leaves no class" + " but the background" * background
        raise ConfigError(problem, found=list(setting), hint="give a class a weight above 0")
    return tuple(map(float, setting))


def _membership(region_indices: Sequence[Sequence[int]]) -> Tensor:
    """Return whether each class index belongs to each region: (regions, indices) bool, the background's index 0 too."""
    count = 1 + max(max(indices) for indices in region_indices)
    return torch.tensor([[index in indices for index in range(count)] for indices in region_indices])


def resized(target: Tensor, sizes: Sequence[Sequence[int]]) -> list[Tensor]:
    """Return class indices (B, D, H, W) at other sizes (D, H, W), by the nearest voxel."""
    return [_resized(target, tuple(size)) for size in sizes]


def _resized(target: Tensor, size: tuple[int, ...]) -> Tensor:
    shape = target.shape[1:]
    if tuple(shape) == size:
        return target
    strides = [of_target // of_level for of_target, of_level in zip(shape, size, strict=True)]
    if [stride * of_level for stride, of_level in zip(strides, size, strict=True)] == list(shape):
        depth, height, width = (slice(stride // 2, None, stride) for stride in strides)
        return target[:, depth, height, width].contiguous()
    return F.interpolate(target[:, None].float(), size=size, mode="nearest-exact")[:, 0].long()
