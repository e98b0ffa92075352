"""What counts of a training that ends after a time, and its learning rate. Plain Python: nnU-Net runs it."""

from __future__ import annotations

from typing import Any

UNCOUNTED = ("compilation", "validation")


class BudgetClock:
    """Seconds of the parts of a training; only those of ``training`` use up the budget.

    Args:
        budget_s: Seconds of training after which the run ends.
    """

    def __init__(self, budget_s: float) -> None:
        self.budget_s = budget_s
        self.seconds = dict.fromkeys(("training", *UNCOUNTED), 0.0)

    def add(self, part: str, seconds: float) -> None:
        """Count the seconds of a part: ``training``, ``compilation`` or ``validation``."""
        self.seconds[part] += seconds

    @property
    def progress(self) -> float:
        """Share of the budget that is used up, 0 to 1."""
        return min(1.0, self.seconds["training"] / self.budget_s)


def polynomial_lr(initial: float, progress: float) -> float:
    """Return nnU-Net's learning rate at a share of the run: ``initial * (1 - progress) ** 0.9``.

    Source: nnU-Net's ``PolyLRScheduler``, where progress is epochs over all epochs.
    """
    return float(initial * (1 - progress) ** 0.9)


class BudgetSchedule:
    """A learning rate that follows a clock, in the place of nnU-Net's ``PolyLRScheduler``.

    Args:
        optimizer: An optimizer of torch.
        initial_lr: Learning rate at the start.
        clock: The clock of the training.
    """

    def __init__(self, optimizer: Any, initial_lr: float, clock: BudgetClock) -> None:
        self.optimizer, self.initial_lr, self.clock = optimizer, initial_lr, clock

    def step(self, epoch: int | None = None) -> None:
        """Set the learning rate of all parameters; the number of the epoch has no meaning."""
        for group in self.optimizer.param_groups:
            group["lr"] = polynomial_lr(self.initial_lr, self.clock.progress)
