"""The processes of a training, their ranks, and what they exchange. A single process exchanges nothing."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from volseg.errors import ConfigError, VolsegError
from volseg.inference.cohort.shard import Shard, TorchrunRank, device_of_rank, torchrun_rank

logger = logging.getLogger(__name__)

Value = TypeVar("Value")

STEP_TIMEOUT = timedelta(minutes=30)
"""Longest wait for the others within a step; the first process may be writing a checkpoint meanwhile."""
STAGE_TIMEOUT = timedelta(days=7)
"""Longest wait for the end of a stage: the first process preprocesses, or another validates a large scan."""


class RankLostError(VolsegError):
    """Another process of the run has ended."""


@dataclass(frozen=True)
class Ranks:
    """This process among those of the run.

    Attributes:
        rank: Its number. Rank 0 writes all files.
        size: Number of processes.
        local_size: Number of them on this machine.
        group: Process group for values on the CPU; ``None`` for a single process.
        torchrun: The rank as ``torchrun`` gave it; ``None`` for a single process.
    """

    rank: int = 0
    size: int = 1
    local_size: int = 1
    group: Any = None
    torchrun: TorchrunRank | None = None

    @property
    def is_first(self) -> bool:
        """Whether this process writes the files of the run."""
        return self.rank == 0

    @property
    def shard(self) -> Shard | None:
        """The part of some cases that this process works on; ``None`` for all."""
        return None if self.size == 1 else (self.rank, self.size)

    def device(self, name: str) -> str:
        """Return the device of this process: its own GPU, or the named device."""
        return device_of_rank(name, self.torchrun)

    def wait(self) -> None:
        """Wait until all processes are here."""
        self.gathered(None)

    @contextmanager
    def together(self) -> Iterator[None]:
        """Finish the block in all processes before any goes on; it may not exchange anything by itself.

        Raises:
            VolsegError: It failed in a process: the error of the first of them, in all. Rank 0 shows it.
        """
        own: VolsegError | None = None
        try:
            yield
        except RankLostError:
            raise
        except VolsegError as error:
            own = error
        self._raise_first(own)

    @contextmanager
    def first_goes_ahead(self) -> Iterator[None]:
        """Let the first process finish the block before the others enter it.

        Raises:
            VolsegError: It failed in the first, in all; or in this one.
        """
        if self.is_first:
            with self.together():
                yield
        else:
            self._raise_first(None)
            yield

    def _raise_first(self, own: VolsegError | None) -> None:
        """Raise the first error of all processes, if one has an error."""
        error = next((error for error in self.gathered(own) if error is not None), None)
        if error is not None:
            error.shown_elsewhere = not self.is_first
            raise error

    @contextmanager
    def held_by_first(
        self, enter: Callable[[], AbstractContextManager[Value]], sent: Callable[[Value], Value] = lambda value: value
    ) -> Iterator[Value]:
        """Enter a context in the first process alone; the others wait and receive its value.

        Args:
            enter: Makes the context.
            sent: Returns what the others receive.

        Raises:
            VolsegError: It could not be entered, in all processes.
        """
        own: Value | None = None
        with ExitStack() as held:
            with self.together():
                if self.is_first:
                    own = held.enter_context(enter())
            received = self.from_first(None if own is None else sent(own))
            value = received if own is None else own
            assert value is not None
            yield value

    def from_first(self, value: Value) -> Value:
        """Return the value of the first process."""
        if self.size == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0, group=self.group)
        return values[0]

    def gathered(self, value: Value) -> list[Value]:
        """Return the values of all processes, by rank."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, group=self.group)
        return values

    def largest(self, number: float) -> float:
        """Return the largest of the numbers of all processes."""
        if self.size == 1:
            return number
        value = torch.tensor(number, dtype=torch.float64)
        dist.all_reduce(value, dist.ReduceOp.MAX, group=self.group)
        return value.item()

    def sum(self, values: Tensor) -> Tensor:
        """Return the sum over all processes, each with the same shape; the gradient passes through.

        All processes must compute the same from the sum. The gradient for the own values is that of the sum of the
        results of all processes, as `torch.nn.parallel.DistributedDataParallel` adds their gradients up.
        """
        return values if self.size == 1 else _Sum.apply(values, self.size)  # type: ignore[no-untyped-call]

    def maximum(self, value: Tensor) -> Tensor:
        """Return the largest of the values of all processes, each a tensor without graph, on their devices."""
        if self.size > 1:
            value = value.clone()
            dist.all_reduce(value, dist.ReduceOp.MAX)
        return value

    def check_device(self, device: torch.device) -> None:
        """Check that each process on this machine has a device of its own.

        Raises:
            ConfigError: A single GPU is named, there are fewer GPUs than processes, or the device has no
                communication.
        """
        found = None
        if device.type == "mps":
            found = "device=mps, which has no communication between processes"
        elif ":" in str(device):
            found = f"device={device}, which is one device"
        elif device.type == "cuda" and torch.cuda.device_count() < self.local_size:
            found = f"{torch.cuda.device_count()} GPUs"
        if found is not None:
            expected = f"a device for each of {self.local_size} processes: device=cuda, or device=cpu"
            raise ConfigError("several processes cannot train on this device", found=found, expected=expected)


def share_of_batch(batch_size: int, processes: int) -> int:
    """Return the patches of each batch that belong to one of several processes.

    Raises:
        ConfigError: The batch does not divide among them.
    """
    if batch_size % processes:
        raise ConfigError(
            "train.batch_size is the batch of all processes together, and does not divide among them",
            found=f"train.batch_size={batch_size}, {processes} processes",
            hint=f"set train.batch_size={-(-batch_size // processes) * processes}, or start fewer processes",
        )
    return batch_size // processes


class _Sum(torch.autograd.Function):
    """Sum over the processes of the default group."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, size: int) -> Tensor:
        ctx.size = size
        total = values.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0] * ctx.size, None  # every process has the same gradient of its result


ALONE = Ranks()


@contextmanager
def joined_ranks(environ: Mapping[str, str]) -> Iterator[Ranks]:
    """Join the processes that ``torchrun`` started; without it this process is alone.

    Raises:
        ConfigError: The variables of ``torchrun`` are invalid.
        RankLostError: Another process ended before this one.
    """
    torchrun = torchrun_rank(environ)
    if torchrun is None or torchrun.shard[1] == 1:
        yield ALONE
        return
    rank, size = torchrun.shard
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", rank=rank, world_size=size, timeout=STEP_TIMEOUT
    )
    group = dist.new_group(backend="gloo", timeout=STAGE_TIMEOUT)
    try:
        with lost_ranks_named():
            yield Ranks(rank, size, int(environ.get("LOCAL_WORLD_SIZE", size)), group, torchrun)
    finally:  # its threads would abort Python's exit
        dist.destroy_process_group()


@contextmanager
def lost_ranks_named() -> Iterator[None]:
    """Turn the error of a connection to a process that has ended into one that says so.

    Raises:
        RankLostError: Another process has ended.
    """
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and "gloo" not in str(error):
            raise
        logger.debug("%s", error)
        problem = "another process of the run has ended, and so does this one"
        raise RankLostError(problem, hint="look for its error above; continue with --resume") from error
