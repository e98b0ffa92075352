"""The state of a pretraining: student, teacher and optimizer; one step, saving and restoring."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from volseg.config.schema import Config
from volseg.models.encoders.transformer import VisionTransformer
from volseg.pretraining.encoder import build_encoder
from volseg.pretraining.heads import DinoHead
from volseg.pretraining.losses import (
    class_token_losses,
    cross_entropy,
    koleo_loss,
    of_all_ranks,
    patch_loss,
    sinkhorn_knopp,
)
from volseg.pretraining.schedules import cosine, last_layer_moves, teacher_momentum, teacher_temperature
from volseg.training.checkpoint import RunProgress
from volseg.training.ema import count_on, move
from volseg.training.optimizer import build_optimizer
from volseg.training.outcome import StepOutcome
from volseg.training.ranks import ALONE, Ranks
from volseg.training.resume import Change
from volseg.training.schedule import learning_rate_factor
from volseg.training.state import RunState, make_fabric, restore_parts, seed_step

PATCH_EMBED_RATE = 0.2
"""Learning rate of the patch embedding over that of its layer. Source: DINOv2."""
LAST_LAYER = "head.last_layer."


class Branch(nn.Module):
    """Encoder and head: what student and teacher are.

    Args:
        encoder: The encoder, of RGB images.
        hidden: Channels of the hidden layers of the head.
        prototypes: Outputs K of the head.
    """

    def __init__(self, encoder: VisionTransformer, hidden: int, prototypes: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = DinoHead(encoder.width, hidden, prototypes)

    def forward(
        self, large: Tensor, small: Tensor, masked: Tensor, places: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Compute what the losses need of the student.

        Args:
            large: Global views ``(2 B, 1, P, P)``, the first of all samples before the second.
            small: Local views ``(V B, 1, p, p)``; V may be 0.
            masked: ``(2 B, N)``: patches of the global views that are hidden.
            places: ``(M,)``: where they are in the flat mask.

        Returns:
            Class tokens of the global views ``(2 B, E)``; scores of these, of the local views' class tokens, and of the
            masked patches, ``(2 B, K)``, ``(V B, K)`` and ``(M, K)``.
        """
        tokens, patches = self.encoder.class_and_patch_tokens(rgb(large), masked)
        inputs = [tokens, self.encoder.class_and_patch_tokens(rgb(small))[0] if len(small) else tokens[:0]]
        inputs.append(patches.flatten(0, 1)[places])
        scores = self.head(torch.cat(inputs))
        of_large, of_small, of_patches = torch.split(scores, [len(part) for part in inputs])
        return tokens, of_large, of_small, of_patches

    def unmasked(self, large: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the teacher's scores of class tokens, and of the patches that the student does not see."""
        tokens, patches = self.encoder.class_and_patch_tokens(rgb(large))
        inputs = [tokens, patches.flatten(0, 1)[places]]
        of_large, of_patches = torch.split(self.head(torch.cat(inputs)), [len(part) for part in inputs])
        return of_large, of_patches


def rgb(images: Tensor) -> Tensor:
    """Return grey images ``(B, 1, H, W)`` with three equal channels."""
    return images.expand(-1, 3, -1, -1)


class PretrainingState(RunState):
    """Student, teacher and optimizer of a run.

    Args:
        config: The configuration.
        start: Weight file of the encoder; ``None`` for random weights, or before `restore`.
        ranks: The processes of the run; all have the same state, and the first writes it.

    Attributes:
        student: The trained branch.
        teacher: The average of the student, which makes the targets and is the result.
        device: Device of both.
        changes: Settings in which this run differs from the one it was restored from.
    """

    def __init__(self, config: Config, start: Path | None, ranks: Ranks = ALONE) -> None:
        self._config = config
        self._ranks = ranks
        with ranks.together():
            self._fabric = make_fabric(config, ranks)
            self.device = self._fabric.device
            torch.manual_seed(config.seed)
            encoder = build_encoder(config.model, start)
            self.student = Branch(encoder, config.pretrain.head_width, config.pretrain.prototypes)
        self.teacher = copy.deepcopy(self.student).eval().requires_grad_(False).to(self.device)
        groups = parameter_groups(self.student, config.train.layer_decay)
        self._rates = [float(group.pop("rate")) for group in groups]
        self._decays = [bool(group.pop("decays")) for group in groups]
        self._network, self._optimizer = self._fabric.setup(
            self.student, build_optimizer(config.train, groups, self.device)
        )
        self._updates = count_on(self.device)
        self.changes: tuple[Change, ...] = ()

    def step(self, batches: Sequence[dict[str, Any]], step: int, spent: float) -> StepOutcome:
        """Run one optimizer step, then move the teacher; skip both if loss or gradient is not finite.

        Args:
            batches: Batches of `volseg.pretraining.views.SliceViews`, the part of this process.
            step: Number of the step; seeds the network's random numbers.
            spent: Completed fraction of the run, 0 to 1; determines all schedules.
        """
        self._follow_schedules(spent)
        seed_step(self._config.seed, step, self._ranks.rank)
        self._network.train()
        self._optimizer.zero_grad(set_to_none=True)
        temperature = teacher_temperature(self._config.pretrain.teacher_temperature, spent)
        results = []
        for number, batch in enumerate(batches, start=1):
            with self._fabric.no_backward_sync(self._network, enabled=number < len(batches)):
                parts = self._losses(batch, temperature)
                self._fabric.backward(parts["loss"] / len(batches))
            results.append(torch.stack([part.detach().float() for part in parts.values()]))
        totals = self._ranks.sum(torch.stack(results).mean(dim=0)) / self._ranks.size
        clip = self._config.train.clip_norm  # encoder and head each, as in DINOv2
        norms = [nn.utils.clip_grad_norm_(part.parameters(), clip) for part in self.student.children()]
        norm = torch.stack(norms).norm()
        is_finite = self._step_if_finite(totals[0], norm)
        self._update_teacher(teacher_momentum(self._config.pretrain.teacher_momentum, spent), is_finite)
        loss, *others = totals.unbind()
        return StepOutcome(loss, norm, dict(zip(list(parts)[1:], others, strict=True)))

    def _follow_schedules(self, spent: float) -> None:
        """Set learning rate and weight decay of every group."""
        settings = self._config.train
        lr = settings.lr * learning_rate_factor(spent, settings)
        decay = cosine(settings.weight_decay, self._config.pretrain.weight_decay_end, spent)
        groups = zip(self._optimizer.param_groups, self._rates, self._decays, strict=True)
        for group, rate, decays in groups:
            moves = last_layer_moves(spent) or not group["name"].startswith(LAST_LAYER)
            group["lr"] = lr * rate if moves else 0.0
            group["weight_decay"] = decay if decays else 0.0

    def _losses(self, batch: dict[str, Any], temperature: float) -> dict[str, Tensor]:
        """Return the loss of a batch, the parts of it, and entropy and divergence of the teacher's assignments."""
        large, small, masked = (
            batch[name].to(self.device, non_blocking=True).transpose(0, 1) for name in ("global", "local", "masked")
        )
        views, masked = len(small), masked.flatten(0, 1)
        # how many there are is known before they are copied: counting on a GPU would wait for it
        places = batch["masked"].transpose(0, 1).flatten().nonzero()[:, 0]
        places = (places.pin_memory() if self.device.type == "cuda" else places).to(self.device, non_blocking=True)
        with torch.no_grad(), self._fabric.autocast():
            of_large, of_patches = self.teacher.unmasked(large.flatten(0, 1), places)
        targets = sinkhorn_knopp(of_large, temperature, self._ranks)
        patch_targets = sinkhorn_knopp(of_patches, temperature, self._ranks)
        tokens, scores, of_small, patch_scores = self._network(large.flatten(0, 1), small.flatten(0, 1), masked, places)
        crossed, local = class_token_losses(scores.chunk(2), of_small.chunk(views) if views else (), targets.chunk(2))
        patches = patch_loss(patch_scores, patch_targets, masked, places)
        spread = torch.stack([koleo_loss(of_all_ranks(part, self._ranks)) for part in tokens.chunk(2)]).sum()
        settings = self._config.pretrain
        entropy = -torch.xlogy(targets, targets).sum(dim=1).mean()
        divergence = cross_entropy(scores.detach(), targets.roll(len(targets) // 2, dims=0)).mean() - entropy
        return {
            "loss": crossed + local + settings.patch_weight * patches + settings.spread_weight * spread,
            "loss_global": crossed,
            "loss_local": local,
            "loss_patch": patches,
            "loss_spread": spread,
            "teacher_entropy": entropy,
            "teacher_student_kl": divergence,
        }

    def _update_teacher(self, momentum: float, is_finite: Tensor) -> None:
        self._updates += is_finite
        weight = (1 - momentum) * is_finite.to(self._updates.dtype)
        move(list(self.teacher.parameters()), list(self.student.parameters()), weight)

    def averaged(self) -> tuple[nn.Module, nn.Module, int]:
        """Return student, teacher, and the number of updates of the teacher."""
        return self.student, self.teacher, int(self._updates)

    def restore(self, folder: Path) -> RunProgress:
        """Load the checkpoint and return the progress of the run; see `volseg.training.state.restore_parts`."""
        parts = (self.student, self.teacher, self._optimizer)
        checkpoint, self.changes = restore_parts(folder, self._config, self._ranks, *parts)
        self._updates.fill_(checkpoint.average_updates)
        return checkpoint.progress


def parameter_groups(student: Branch, layer_decay: float) -> list[dict[str, Any]]:
    """Return parameter groups for AdamW.

    Args:
        student: The student.
        layer_decay: Learning rate of a layer of the encoder over that of the next.

    Returns:
        Groups with ``name``, ``params``, the ``rate`` that multiplies the learning rate, and whether weight ``decays``.

    Source: ``dinov2/utils/param_groups.py`` of facebookresearch/dinov2; volseg's encoders name what does not decay.
    """
    groups: dict[str, dict[str, Any]] = {}
    for name, parameter in student.named_parameters():
        decays, rate, part = parameter.ndim > 1, 1.0, "head"
        if name.startswith("encoder."):
            own = name.removeprefix("encoder.")
            above = student.encoder.layers_above(own)
            is_input = own.startswith("patch_embed.")
            decays = decays and not own.endswith((*student.encoder.undecayed, "mask_token"))
            rate = layer_decay**above * (PATCH_EMBED_RATE if is_input else 1)
            part = f"encoder, {above} layers below its end{', patch embedding' if is_input else ''}"
        elif name.startswith(LAST_LAYER):
            part = LAST_LAYER
        key = f"{part}, {'decay' if decays else 'no decay'}"
        group = groups.setdefault(key, {"name": key, "params": [], "rate": rate, "decays": decays})
        assert math.isclose(group["rate"], rate)
        group["params"].append(parameter)
    return list(groups.values())
