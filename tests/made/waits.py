"""Operations that would wait for a GPU, told on a CPU."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "lift_fresh", "equal", "is_nonzero")
"""Operations that would wait for a GPU: they read a value or a size, or copy Python's numbers to it."""


class Waits(TorchDispatchMode):
    """Collect the operations that would wait for a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        indices = args[1] if name.startswith("index") and isinstance(args[1], (list, tuple)) else []
        if name in WAITS or any(is_mask(index) for index in indices):
            self.names.append(name)
        return func(*args, **(kwargs or {}))


def is_mask(index: Any) -> bool:
    return isinstance(index, Tensor) and index.dtype == torch.bool
