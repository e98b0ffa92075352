"""The largest patch and batch whose training step fits into a limit of memory."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from volseg.config.sizes import format_size
from volseg.errors import ConfigError, counted
from volseg.planning import nnunet
from volseg.planning.plan import Plan, Size


@dataclass(frozen=True, kw_only=True)
class MemoryBudget:
    """A limit of memory.

    Attributes:
        limit_bytes: Most bytes of a training step.
        training_bytes: Estimates the bytes of a training step with a plan's patch and batch.
        network: The network that is counted, in words.
        default: Nobody has stated the limit. It then only enlarges patch and batch of the rule without a limit: a patch
            that is set by hand stays with its batch, and so does the rule's where the network needs more.
    """

    limit_bytes: int
    training_bytes: Callable[[Plan], int]
    network: str
    default: bool = False

    @property
    def limit_text(self) -> str:
        """The limit in words."""
        return f"{format_size(self.limit_bytes)}{', the default on a GPU' if self.default else ''}"

    def fits(self, plan: Plan) -> bool:
        """Return whether a training step with this plan stays within the limit."""
        return self.training_bytes(plan) <= self.limit_bytes

    def decides(self, plan: Plan, *, patch_by_hand: bool) -> bool:
        """Return whether the limit decides about patch and batch, for the plan of the rule or of this limit."""
        return not self.default or (not patch_by_hand and self.fits(plan))


def largest_plan(
    budget: MemoryBudget,
    complete: Callable[[Size, int], Plan],
    patches: Sequence[Size],
    *,
    batch: int | None,
    largest_batch: int,
) -> Plan:
    """Return the plan with the largest patch that fits, and of the whole median case with the largest batch.

    As in nnU-Net, the patch comes first, with a batch of 2, and only what the whole case leaves makes the batch larger.

    Args:
        budget: The limit.
        complete: Makes the plan of a patch and a batch.
        patches: Patches, the largest first; the memory falls along them.
        batch: A batch that is set by hand, or ``None``.
        largest_batch: Most patches of a batch.

    Raises:
        ConfigError: Not even the smallest patch fits.
    """
    first = nnunet.MIN_BATCH if batch is None else batch
    index = bisect_left(range(len(patches)), True, key=lambda one: budget.fits(complete(patches[one], first)))
    if index == len(patches):
        needed = budget.training_bytes(complete(patches[-1], first))
        raise ConfigError(
            "no patch fits into plan.memory",
            found=f"{format_size(budget.limit_bytes)} for {budget.network}",
            expected=f"at least {format_size(needed)}, with {counted(first, 'patch')} of {patches[-1]} voxels a batch",
            hint="raise --memory or plan.memory, or choose a smaller network or train.batch_size=1",
        )
    if batch is not None or index > 0:
        return complete(patches[index], first)
    batches = range(first + 1, largest_batch + 1)
    too_large = bisect_left(batches, True, key=lambda size: not budget.fits(complete(patches[0], size)))
    return complete(patches[0], first + too_large)
