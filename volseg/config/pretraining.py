"""The section ``pretrain`` of a configuration: self-supervised pretraining of an encoder."""

from __future__ import annotations

from dataclasses import dataclass

from volseg.config.checks import one_of, positive
from volseg.errors import ConfigError

AXES = ("all", "slice")
SMALLEST_GLOBAL, SMALLEST_LOCAL = 4, 2
"""Fewest tokens along the side of a view."""


@dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """Self-supervised pretraining of the slice encoder, for ``volseg pretrain`` alone.

    Length, batch, learning rate, first weight decay, clipping, layer decay, validations and checkpoints are those of
    ``train``; see the configuration ``pretrain``.

    Attributes:
        token_stride: Finest voxels that a token of a global view covers, about; that of the later segmentation fits.
        axes: Slices along ``all`` three axes, or along the ``slice`` axis alone, the one with the coarsest spacing.
        global_tokens: Tokens along the side of a global view; fewer where the scans are smaller.
        local_tokens: Tokens along the side of a local view; at most half of those of a global one.
        local_views: Local views of each slice, beside two global ones.
        prototypes: Outputs of the projection head, which class and patch tokens share.
        head_width: Channels of the hidden layers of the head.
        teacher_momentum: Decay of the teacher's average of the student at the start; it rises to 1.
        teacher_temperature: Temperature of the teacher's assignments, after a rise from 0.04; DINOv2 ends at 0.07.
        weight_decay_end: Weight decay at the end; it rises from ``train.weight_decay``.
        patch_weight: Weight of the loss of masked patches (iBOT).
        spread_weight: Weight of the regulariser that spreads class tokens (KoLeo).
        held_out: Share of the scans of a folder without labels that are held out for the measures of the log, at least
            one; a data set holds out those of ``data.fold``.
    """

    token_stride: int = 8
    axes: str = "all"
    global_tokens: int = 16
    local_tokens: int = 7
    local_views: int = 8
    prototypes: int = 4096
    head_width: int = 2048
    teacher_momentum: float = 0.992
    teacher_temperature: float = 0.04
    weight_decay_end: float = 0.4
    patch_weight: float = 1.0
    spread_weight: float = 0.1
    held_out: float = 0.1

    def __post_init__(self) -> None:
        one_of("pretrain.axes", self.axes, AXES)
        for name in ("token_stride", "prototypes", "head_width", "teacher_temperature"):
            positive(f"pretrain.{name}", getattr(self, name))
        for name in ("local_views", "weight_decay_end", "patch_weight", "spread_weight"):
            positive(f"pretrain.{name}", getattr(self, name), zero=True)
        for name, smallest in (("global_tokens", SMALLEST_GLOBAL), ("local_tokens", SMALLEST_LOCAL)):
            if getattr(self, name) < smallest:
                found, expected = getattr(self, name), f"at least {smallest}"
                raise ConfigError(f"pretrain.{name} is out of range", found=found, expected=expected)
        if not 0 <= self.teacher_momentum < 1:
            found, expected = self.teacher_momentum, "0 <= momentum < 1"
            raise ConfigError("pretrain.teacher_momentum is out of range", found=found, expected=expected)
        if not 0 <= self.held_out < 1:
            raise ConfigError("pretrain.held_out is out of range", found=self.held_out, expected="0 <= share < 1")
