"""Plans with the fields that networks are built from, small enough for a test."""

from __future__ import annotations

from dataclasses import dataclass, field

Triple = tuple[int, int, int]


@dataclass(frozen=True)
class StubPlan:
    spacing_mm: tuple[float, float, float] = (1.0, 1.0, 1.0)
    patch_size: Triple = (8, 16, 16)
    token_stride: int = 8
    decoder_strides: tuple[Triple, ...] = ((1, 1, 1), (2, 2, 2), (4, 4, 4), (8, 8, 8))
    num_classes: int = 3
    num_channels: int = 1
    region_indices: tuple[tuple[int, ...], ...] = field(default=(), kw_only=True)

    @property
    def channels(self) -> tuple[str, ...]:
        return tuple(f"MR{index}" for index in range(self.num_channels))

    @property
    def class_names(self) -> tuple[str, ...]:
        return ("background", *(f"organ{index}" for index in range(1, self.num_classes)))


THICK = StubPlan(
    spacing_mm=(7.7, 1.6, 1.6),
    patch_size=(5, 16, 24),
    token_stride=4,
    decoder_strides=((1, 1, 1), (1, 2, 2), (1, 4, 4)),
    num_channels=2,
)
