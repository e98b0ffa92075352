"""The outcomes of steps: read some steps later, so that the processor does not wait for a GPU in every step."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from volseg.errors import VolsegError
from volseg.io.cases import listed
from volseg.training.checkpoint import RunProgress

logger = logging.getLogger(__name__)

MOST_UNREAD = 2
"""Steps that a GPU may be behind. More would not make it faster, and would keep more batches in memory."""
MOST_FAILURES = 3
"""Steps in a row whose loss or gradient is not finite, after which a run ends."""


class StepOutcome:
    """What one step of training came to. Its numbers wait for the step, and not for those after it.

    Args:
        loss: Loss, a scalar; of the device of the step, as all others.
        gradient_norm: Norm of the gradient before it was clipped.
        parts: Further numbers for the log, by name.
    """

    def __init__(self, loss: Tensor, gradient_norm: Tensor, parts: Mapping[str, Tensor] | None = None) -> None:
        self._names = tuple(parts or ())
        values = torch.stack([loss.detach(), gradient_norm, *(parts or {}).values()])
        self._is_computed: torch.cuda.Event | None = None
        if values.device.type == "cuda":
            stream = torch.cuda.current_stream(values.device)
            values = values.to("cpu", non_blocking=True)  # into pinned memory
            self._is_computed = stream.record_event()
        self._values = values

    @property
    def is_asynchronous(self) -> bool:
        """Whether the numbers may not be computed yet."""
        return self._is_computed is not None

    @property
    def loss(self) -> Tensor:
        """Loss of the step: a scalar on the CPU."""
        return self._numbers()[0]

    @property
    def gradient_norm(self) -> Tensor:
        """Norm of the gradient before it was clipped: a scalar on the CPU."""
        return self._numbers()[1]

    @property
    def is_finite(self) -> bool:
        """Whether loss and gradient are finite; otherwise the step was skipped and changed nothing."""
        return bool(self._numbers()[:2].isfinite().all())

    @property
    def parts(self) -> dict[str, float]:
        """Further numbers for the log, by name."""
        numbers = self._numbers()[2:].tolist()
        return {name: round(number, 5) for name, number in zip(self._names, numbers, strict=True)}

    def _numbers(self) -> Tensor:
        if self._is_computed is not None:
            self._is_computed.synchronize()
            self._is_computed = None
        self._values = self._values.cpu()
        return self._values


class Outcomes:
    """Keep the outcomes of the last steps until they are read, and record them in the progress of the run.

    Outcomes of a CPU are recorded at once. Of a GPU, `MOST_UNREAD` are kept, in all processes of a run alike.

    Args:
        run: Progress of the run, which is updated.
    """

    def __init__(self, run: RunProgress) -> None:
        self._run = run
        self._unread: deque[tuple[int, StepOutcome, list[str]]] = deque()

    def add(self, outcome: StepOutcome, step_batches: Sequence[dict[str, Any]]) -> None:
        """Add the outcome of a step, the last one in the progress of the run, and record those that are due.

        Args:
            outcome: The outcome.
            step_batches: The batches of the step, with the names of their cases.

        Raises:
            VolsegError: As `record`.
        """
        cases = [name for batch in step_batches for name in batch["case"]]
        self._unread.append((self._run.step, outcome, cases))
        self.record(keep=MOST_UNREAD if outcome.is_asynchronous else 0)

    def record(self, keep: int = 0) -> None:
        """Keep the loss of each step for the log, or log and count that it was skipped.

        Args:
            keep: Number of the last outcomes that are left unread; without any the device has finished all steps.

        Raises:
            VolsegError: Three steps in a row were skipped.
        """
        while len(self._unread) > keep:
            step, outcome, cases = self._unread.popleft()
            if outcome.is_finite:
                self._run.losses.append(outcome.loss)
                self._run.failures.clear()
            else:
                self._record_failure(step, outcome, cases)

    def _record_failure(self, step: int, outcome: StepOutcome, cases: list[str]) -> None:
        run, loss, norm = self._run, outcome.loss.item(), outcome.gradient_norm.item()
        run.failures.append(f"step {step}: loss {loss:.4g}, gradient norm {norm:.4g}, cases {listed(cases)}")
        run.skipped += 1
        logger.warning("a step was skipped, because loss or gradient is not finite: %s", run.failures[-1])
        if len(run.failures) >= MOST_FAILURES:
            raise VolsegError(
                f"loss or gradient was not finite in {MOST_FAILURES} steps in a row",
                found="\n    ".join(["", *run.failures]),
                hint="look at these cases; if they are sound, start a new run with a lower train.lr in another output=",
            )
