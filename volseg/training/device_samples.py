"""Batches that are copied to a GPU and augmented there, one ahead of the training step."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from volseg.data.datasets import PatchDataset, TokenDataset
from volseg.errors import VolsegError

Batch = dict[str, Any]


class DeviceSamples(Dataset[Batch]):
    """Samples that workers only cut, and that are completed in batches on the device.

    Args:
        samples: Patches, which are augmented on the device, or patches with stored tokens.
        device: Device of the network.
    """

    def __init__(self, samples: PatchDataset | TokenDataset, device: torch.device) -> None:
        self.samples = samples
        self.device = device

    def __getitem__(self, index: int) -> Batch:
        return self.samples.cut(index) if isinstance(self.samples, PatchDataset) else self.samples[index]

    def batches(self, loaded: Iterable[Batch | VolsegError]) -> Iterator[Batch | VolsegError]:
        """Complete batches of these samples; on a GPU in a stream of its own, while the step before computes.

        Args:
            loaded: Batches on the CPU, in pinned memory if the device is a GPU. Errors are passed on in their turn.
        """
        stream = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None  # type: ignore[no-untyped-call]
        ahead: _Started | None = None
        for batch in loaded:
            ready, ahead = ahead, self._start(batch, stream)
            if ready is not None:
                yield ready.handed_over()
        if ahead is not None:
            yield ahead.handed_over()

    def _start(self, batch: Batch | VolsegError, stream: torch.cuda.Stream | None) -> _Started:
        if isinstance(batch, VolsegError):
            return _Started(batch)
        with torch.cuda.stream(stream):  # of no stream: no effect
            moved = {key: self._moved(value) for key, value in batch.items()}
            completed = self.samples.augmented(moved) if isinstance(self.samples, PatchDataset) else moved
        return _Started(completed, None if stream is None else stream.record_event())

    def _moved(self, value: Any) -> Any:
        return value.to(self.device, non_blocking=True) if isinstance(value, Tensor) else value


@dataclass(frozen=True)
class _Started:
    """A batch whose computation was started, and the event at its end in the stream of a GPU."""

    batch: Batch | VolsegError
    event: torch.cuda.Event | None = None

    def handed_over(self) -> Batch | VolsegError:
        """Return the batch; the GPU, not the CPU, waits for it."""
        if self.event is not None and isinstance(self.batch, dict):
            for value in self.batch.values():
                if isinstance(value, Tensor):
                    stream = torch.cuda.current_stream(value.device)
                    stream.wait_event(self.event)
                    value.record_stream(stream)  # its memory is not used again before the step is done
        return self.batch
