"""Speed, completed part and remaining time of a run, for the lines of its log."""

from __future__ import annotations

from volseg.training.schedule import Budget


class Pace:
    """Measure the steps of this process.

    Args:
        budget: Length of the run.
        patches_per_step: Samples per step.
        step: Finished steps.
        elapsed_s: Seconds of training and validation so far.

    Attributes:
        step_s: Seconds per step before the last `text`; ``None`` without a new step.
    """

    def __init__(self, budget: Budget, patches_per_step: int, step: int, elapsed_s: float) -> None:
        self._budget = budget
        self._patches_per_step = patches_per_step
        self._first = self._last = (step, elapsed_s)
        self._skipped_s = 0.0
        self.step_s: float | None = None

    def skip(self, seconds: float) -> None:
        """Leave a validation out of the speed; the remaining time counts it."""
        self._skipped_s += seconds

    def text(self, step: int, elapsed_s: float) -> str:
        """Return the completed part, the speed since the last call and the remaining time.

        Args:
            step: Finished steps.
            elapsed_s: Seconds of training and validation so far.

        Returns:
            ``16%, 2.4 samples/s, 4.2 min left``, or ``16%, 7.1 s per step, about 85 steps in all, 8.4 min left`` where
            a step takes a second or more; without a new step only the part.
        """
        parts = [f"{self._budget.progress(step, elapsed_s):.0%}"]
        steps, seconds = step - self._last[0], elapsed_s - self._last[1] - self._skipped_s
        self.step_s = seconds / steps if steps > 0 else None
        if steps > 0 and seconds >= steps:
            parts.append(f"{seconds / steps:.1f} s per step")
            if self._budget.max_seconds is not None:
                in_all = step + max(0.0, self._budget.max_seconds - elapsed_s) / (seconds / steps)
                parts.append(f"about {in_all:.0f} steps in all")
        elif steps > 0 and seconds > 0:
            parts.append(f"{steps * self._patches_per_step / seconds:.1f} samples/s")
        left_s = self._left_s(step, elapsed_s)
        if left_s is not None:
            parts.append(f"{duration(left_s)} left")
        self._last, self._skipped_s = (step, elapsed_s), 0.0
        return ", ".join(parts)

    def _left_s(self, step: int, elapsed_s: float) -> float | None:
        """Return the remaining seconds: stated by the budget, or from the mean time of a step in this process."""
        if self._budget.max_seconds is not None:
            return max(0.0, self._budget.max_seconds - elapsed_s)
        assert self._budget.max_steps is not None
        steps = step - self._first[0]
        return None if steps == 0 else (elapsed_s - self._first[1]) / steps * max(0, self._budget.max_steps - step)


def duration(seconds: float) -> str:
    """Return a duration with two or three digits: ``45 s``, ``4.2 min``, ``3.4 h``."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
