"""Autocast on the meta device, which torch's own autocast leaves alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only

REDUCED = frozenset(
    ["linear", "matmul", "__matmul__", "bmm", "conv1d", "conv2d", "conv3d", "conv_transpose2d", "conv_transpose3d"]
)
"""Functions whose arguments become bf16."""
FLOAT32_CPU = frozenset(["avg_pool3d"])
FLOAT32_GPU = frozenset(["layer_norm", "group_norm", "softmax"])
"""Functions whose arguments become float32."""


class MetaAutocast(TorchFunctionMode):
    """Change the types of arguments as torch's autocast to bf16 does, as far as volseg's networks call these functions.

    A weight is copied once and the copy kept until the mode ends, as in torch's cache.

    Args:
        device_type: Device whose rules are followed; those of CUDA for all that is no CPU.

    Source: torch's documentation of ``torch.amp``, "CPU Op-Specific Behavior" and "CUDA Op-Specific Behavior".
    """

    def __init__(self, device_type: str) -> None:
        super().__init__()
        self._float32 = FLOAT32_CPU if device_type == "cpu" else FLOAT32_GPU
        self._weights: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}  # with the weight, so that no id is reused

    def __exit__(self, *error: Any) -> None:
        """End the mode; the copies of the weights live on only where the graph holds them."""
        self._weights.clear()
        super().__exit__(*error)  # type: ignore[no-untyped-call]

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Call a function with the arguments that autocast would give it."""
        name, kwargs = getattr(func, "__name__", ""), kwargs or {}
        if name in REDUCED or name in self._float32:
            change = self._reduced if name in REDUCED else _float32
            args, kwargs = tree_map_only(torch.Tensor, change, (tuple(args), dict(kwargs)))
        return func(*args, **kwargs)

    def _reduced(self, tensor: torch.Tensor) -> torch.Tensor:
        if tensor.dtype != torch.float32:
            return tensor
        if not (tensor.is_leaf and tensor.requires_grad):
            return tensor.to(torch.bfloat16)
        if id(tensor) not in self._weights:
            self._weights[id(tensor)] = (tensor, tensor.to(torch.bfloat16))
        return self._weights[id(tensor)][1]


def _float32(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.float() if tensor.dtype == torch.bfloat16 else tensor
