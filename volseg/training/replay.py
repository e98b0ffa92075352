"""Steps that are recorded once and replayed: a GPU then gets one command in place of a thousand (CUDA graphs).

A recording repeats what the GPU did, with the same addresses. It is used only if the operations of a step allow it
(`Waits`) and if its gradients are those of the network with two batches, weights and seeds; otherwise every step is
computed anew.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from volseg.config.schema import Config
from volseg.training.ranks import Ranks

logger = logging.getLogger(__name__)

WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "lift_fresh", "equal", "is_nonzero", "_unique2")
"""Operations that read a value or a size from the device, or make a tensor of Python's numbers."""
TOLERANCE = 0.01
"""Largest relative difference of loss and gradients of a recording. Atomic additions differ by 1e-6, and by 1e-3 in
bf16; other random numbers or another batch by far more."""
MOST_ATTEMPTS = 3
"""Steps whose loss or gradients are not finite, after which no other one is recorded."""

Batches = Sequence[dict[str, Any]]
Compute = Callable[[Batches], Tensor]
"""Computes the gradients of all weights anew and returns the loss."""
Trial = tuple[Batches, float, Callable[[], Any]]
"""Batches, a factor of the weights, and what seeds the random numbers."""
Result = tuple[Tensor, list[Tensor]]
"""Loss and gradients."""


class NotReplayableError(RuntimeError):
    """A step cannot be recorded; the text says why."""


class NotFiniteError(NotReplayableError):
    """Loss or gradients of a step are not finite, so that a recording of it cannot be compared."""


class Waits(TorchDispatchMode):
    """Collect the names of operations that wait for a GPU, or whose results Python has a part in.

    Args:
        device: Device of the step. What is computed elsewhere would not be recorded.
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._device = device.type
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        tensors = [leaf for leaf in tree_leaves((args, kwargs, result)) if isinstance(leaf, Tensor)]
        indices = tree_leaves(args[1]) if name.startswith("index") and len(args) > 1 else []
        masked = any(isinstance(index, Tensor) and index.dtype == torch.bool for index in indices)
        copied = name in ("_to_copy", "copy_")  # numbers may be tensors of the CPU without axes, but not be copied
        elsewhere = any(each.device.type != self._device and (each.ndim or copied) for each in tensors)
        if name in WAITING or masked or elsewhere:
            self.names.append(name)
        return result


class Graphs(Protocol):
    """What records: the GPU, or a stand-in."""

    def warm_up(self) -> Any:
        """Return the context in which the step runs before it is recorded."""

    def record(self, compute: Callable[[], Tensor]) -> tuple[Tensor, Callable[[], None]]:
        """Record a computation; return the tensor of its result and a function that repeats it."""


class CudaGraphs:
    """CUDA graphs.

    The random numbers of a recording follow `torch.manual_seed`, as those of the network do: a replay gets the seed of
    the generator as it is then.

    Args:
        device: The GPU.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device

    @contextmanager
    def warm_up(self) -> Iterator[None]:
        """Run on a stream of its own, as recording does."""
        with torch.cuda.device(self._device):
            stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                yield
            torch.cuda.current_stream().wait_stream(stream)

    def record(self, compute: Callable[[], Tensor]) -> tuple[Tensor, Callable[[], None]]:
        """Record a computation; return the tensor of its result and a function that repeats it."""
        with torch.cuda.device(self._device):
            graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()  # type: ignore[no-untyped-call]
            pool = torch.cuda.graph_pool_handle()
            try:
                # a loader's thread that pins memory would end a recording that is not of this thread alone; the outer
                # context restores the stream where recording fails
                with torch.cuda.stream(stream), torch.cuda.graph(graph, pool, stream, "thread_local"):
                    result = compute()
            except RuntimeError:
                clean_up(torch.cuda.current_device(), pool)
                raise
        return result, graph.replay


def clean_up(device: int, pool: tuple[int, int]) -> None:
    """Undo what torch keeps of a recording that failed.

    In versions older than 2.13 its generator refuses to draw numbers from then on. The memory of the recording, and
    later all memory that several streams use, would never be freed; the graph does not name its pool then.

    Args:
        device: Index of the GPU.
        pool: The pool that was recorded to.
    """
    generator = torch.cuda.default_generators[device]
    generator.graphsafe_set_state(generator.clone_state())
    with suppress(RuntimeError, AttributeError):  # ended already: then the graph releases its memory
        torch._C._cuda_endAllocateToPool(device, pool)
        torch._C._cuda_releasePool(device, pool)


class Recording:
    """A recorded step, which computes the gradients of other batches of the same shapes.

    Args:
        compute: Computes the gradients.
        model: The network that gets them.
        batches: Batches of a step.
        seed: Seeds the random numbers of the step.
        graphs: What records.

    Raises:
        NotFiniteError: Loss or gradients of the network are not finite; nothing was recorded.
        NotReplayableError: The step has operations that cannot be recorded, or the recording computes something else.
        RuntimeError: Recording failed.
    """

    def __init__(
        self,
        compute: Compute,
        model: nn.Module,
        batches: Batches,
        seed: Callable[[], None],
        graphs: Graphs,
    ) -> None:
        self._weights = weights_of(model)
        device = self._weights[0].device
        self._inputs = [{name: value.to(device, copy=True) for name, value in tensors(batch)} for batch in batches]
        others = [{name: altered(value) for name, value in batch.items()} for batch in self._inputs]
        own = [{name: value.clone() for name, value in batch.items()} for batch in self._inputs]
        trials: list[Trial] = [(others, 1.5, partial(torch.manual_seed, 1)), (own, 1.0, seed)]
        expected = [self._expected(compute, trial, model, graphs) for trial in trials]
        for weight in self._weights:
            weight.grad = None
        self._loss, self._repeat = graphs.record(lambda: compute(self._inputs))
        for trial, (loss, gradients) in zip(trials, expected, strict=True):
            with self._tried(trial, model):
                self._repeat()
                self._check(loss, gradients)

    @contextmanager
    def _tried(self, trial: Trial, model: nn.Module) -> Iterator[None]:
        """Set inputs, weights and seed of a trial; restore the weights."""
        batches, factor, seed = trial
        self._fill(batches)
        with restored(model), torch.no_grad():
            torch._foreach_mul_(list[Tensor](self._weights), factor)
            seed()
            with torch.enable_grad():
                yield

    def _expected(self, compute: Compute, trial: Trial, model: nn.Module, graphs: Graphs) -> Result:
        """Return loss and gradients of the network in a trial."""
        waits = Waits(self._weights[0].device)
        with self._tried(trial, model):
            with graphs.warm_up(), waits:
                loss = compute(self._inputs).clone()
            if waits.names:
                names = ", ".join(sorted(set(waits.names)))
                raise NotReplayableError(f"operations that a recording cannot repeat: {names}")
            gradients = [gradient.clone() for gradient in self._gradients()]
            if not torch.stack([loss, total_norm(gradients)]).isfinite().all():
                raise NotFiniteError("loss or gradients of the first steps are not finite")
            return loss, gradients

    def fits(self, batches: Batches) -> bool:
        """Return whether batches have the names, shapes and types of those that were recorded."""
        return [outline(batch) for batch in batches] == [outline(batch) for batch in self._inputs]

    def __call__(self, batches: Batches) -> Tensor:
        """Compute the gradients of the weights for batches that fit, and return the loss.

        Both are in the memory of the recording, and valid until the next call.
        """
        self._fill(batches)
        self._repeat()
        return self._loss

    def _fill(self, batches: Batches) -> None:
        for own, batch in zip(self._inputs, batches, strict=True):
            for name, value in own.items():
                value.copy_(batch[name], non_blocking=True)

    def _gradients(self) -> list[Tensor]:
        return [weight.grad for weight in self._weights if weight.grad is not None]

    def _check(self, expected_loss: Tensor, expected: list[Tensor]) -> None:
        gradients = self._gradients()
        if len(gradients) != len(expected):
            raise NotReplayableError(f"the recording has {len(gradients)} gradients, the network {len(expected)}")
        differences = [torch._foreach_sub(gradients, expected), [self._loss - expected_loss]]
        for name, difference, of_network in zip(
            ("gradients", "losses"), differences, [expected, [expected_loss]], strict=True
        ):
            relative = (total_norm(difference) / total_norm(of_network).clamp(min=torch.finfo().tiny)).item()
            if not relative <= TOLERANCE:
                raise NotReplayableError(f"the {name} of the recording and of the network differ by {relative:.2g}")


class Replayer:
    """Compute gradients by a recording of the first step, where that is possible, and otherwise anew.

    Args:
        compute: Computes the gradients.
        model: The network that gets them.
        graphs: What records; ``None`` computes every step anew.
    """

    def __init__(self, compute: Compute, model: nn.Module, graphs: Graphs | None) -> None:
        self._compute = compute
        self._model = model
        self._graphs = graphs
        self._recording: Recording | None = None
        self._attempts = 0

    @property
    def is_recorded(self) -> bool:
        """Whether steps are replayed."""
        return self._recording is not None

    def gradients(self, batches: Batches, seed: Callable[[], None]) -> Tensor:
        """Compute the gradients of a step and return its loss; both are valid until the next call.

        Args:
            batches: The batches of the step.
            seed: Seeds the random numbers of the step.
        """
        if self._graphs is not None and self._recording is None:
            self._record(batches, seed, self._graphs)
            seed()
        if self._recording is not None and not self._recording.fits(batches):
            self._give_up("a batch has another shape than the first")
        return self._compute(batches) if self._recording is None else self._recording(batches)

    def _record(self, batches: Batches, seed: Callable[[], None], graphs: Graphs) -> None:
        if not all(value.isfinite().all() for batch in batches for _, value in tensors(batch)):
            return  # nothing could be compared; the next step is recorded
        try:
            self._recording = Recording(self._compute, self._model, batches, seed, graphs)
        except NotFiniteError as error:  # the next step is recorded
            self._attempts += 1
            if self._attempts == MOST_ATTEMPTS:
                self._give_up(str(error))
        except RuntimeError as error:
            cause = error.__context__ or error  # the end of a recording that failed is an error of its own
            self._give_up(str(cause).partition("\n")[0])
        else:
            logger.info("the kernels of a step were recorded and are replayed (train.replay=never computes them anew)")

    def _give_up(self, reason: str) -> None:
        self._graphs = self._recording = None
        for weight in weights_of(self._model):
            weight.grad = None  # it may be memory of the recording
        logger.warning("steps are not replayed, but computed anew: %s", reason)


def choose_graphs(config: Config, device: torch.device, ranks: Ranks) -> Graphs | None:
    """Return what records the steps of a run; ``None`` where they are computed anew.

    They are, with ``train.replay=never``, on other devices than CUDA, by several processes, whose gradients travel in
    between, and with ``model.checkpoint_encoder``, whose random numbers are set back within a step.
    """
    is_possible = device.type == "cuda" and ranks.size == 1 and not config.model.checkpoint_encoder
    return CudaGraphs(device) if is_possible and config.train.replay == "auto" else None


def weights_of(model: nn.Module) -> list[nn.Parameter]:
    """Return the weights that are trained."""
    return [weight for weight in model.parameters() if weight.requires_grad]


@contextmanager
def restored(model: nn.Module) -> Iterator[None]:
    """Restore trained weights and buffers of a network after a block, also where it fails."""
    values: list[Tensor] = [*weights_of(model), *model.buffers()]
    before = [value.detach().clone() for value in values]
    try:
        yield
    finally:
        with torch.no_grad():
            for value, kept in zip(values, before, strict=True):
                value.copy_(kept)


def tensors(batch: dict[str, Any]) -> list[tuple[str, Tensor]]:
    """Return the tensors of a batch by name."""
    return [(name, value) for name, value in batch.items() if isinstance(value, Tensor)]


def outline(batch: dict[str, Any]) -> dict[str, Any]:
    """Return shape and type of each tensor of a batch."""
    return {name: (value.shape, value.dtype) for name, value in tensors(batch)}


def altered(value: Tensor) -> Tensor:
    """Return other values of a batch: images, tokens and labels turned around, but not together."""
    return value.flip(-1 if value.is_floating_point() else 1)


def total_norm(values: Sequence[Tensor]) -> Tensor:
    """Return the Euclidean norm of the numbers of all tensors together."""
    norms = torch.stack([norm.float() for norm in torch._foreach_norm(list(values))])
    return cast("Tensor", torch.linalg.vector_norm(norms))
