"""Low-rank adaptation (LoRA): a linear layer keeps its weight and learns a small product beside it.

Source: Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models", section 4.1.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

_MATRICES = ("lora_a", "lora_b")


class LoraLinear(nn.Linear):
    """``W x + b + alpha / rank * B A dropout(x)``, with B = 0 at the start, bitwise identical to the given layer.

    ``weight`` and ``bias`` are the given layer's own parameters and keep their names; ``lora_a`` (rank, in) and
    ``lora_b`` (out, rank) are added. The fused query, key and value layer gets one pair: the three share A.

    Args:
        linear: The layer to adapt.
        rank: Rank of the product.
        alpha: Its factor times ``rank``.
        dropout: Fraction of the product's inputs that training drops.

    Source: Hu et al. 2021, equation 3; initial A as in the authors' code (microsoft/LoRA, ``loralib/layers.py``).
    """

    def __init__(self, linear: nn.Linear, *, rank: int, alpha: float, dropout: float) -> None:
        nn.Module.__init__(self)  # Linear.__init__ would allocate and draw another weight
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias = linear.weight, linear.bias
        self.factor, self.dropout = alpha / rank, dropout
        self.lora_a = nn.Parameter(linear.weight.new_empty(rank, linear.in_features))
        self.lora_b = nn.Parameter(linear.weight.new_zeros(linear.out_features, rank))
        nn.init.kaiming_uniform_(self.lora_a, a=5**0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``(..., in)`` -> ``(..., out)``."""
        low = F.linear(F.dropout(x, self.dropout, self.training), self.lora_a)  # (..., rank)
        return super().forward(x) + self.factor * F.linear(low, self.lora_b)

    @torch.no_grad()
    def merged_weight(self) -> torch.Tensor:
        """Return ``W + alpha / rank * B A``, ``(out, in)``, summed in float64 on the CPU (MPS has none)."""
        weight, b, a = (matrix.cpu().double() for matrix in (self.weight, self.lora_b, self.lora_a))
        return (weight + self.factor * b @ a).to(self.weight)

    def merged(self) -> nn.Linear:
        """Return a plain layer that computes the same."""
        plain = nn.Linear(self.in_features, self.out_features, device="meta")  # draws no random weight
        plain.weight = nn.Parameter(self.merged_weight(), requires_grad=self.weight.requires_grad)
        plain.bias = self.bias
        return plain.train(self.training)


def add_lora(module: nn.Module, layers: Sequence[str], *, rank: int, alpha: float, dropout: float = 0.0) -> None:
    """Adapt, in place, linear layers inside a module.

    Drawing A does not change the random state, so that parts initialised afterwards start the same with and without
    LoRA.

    Args:
        module: The network.
        layers: Attribute names of the linear layers to adapt.
        rank: Rank of the products.
        alpha: Their factor times ``rank``.
        dropout: Fraction of the products' inputs that training drops.
    """
    with torch.random.fork_rng(devices=[]):
        for parent in list(module.modules()):
            for name, child in list(parent.named_children()):
                if name in layers and type(child) is nn.Linear:
                    setattr(parent, name, LoraLinear(child, rank=rank, alpha=alpha, dropout=dropout))


def merge_lora(module: nn.Module) -> None:
    """Replace, in place, every adapted layer inside a module with a plain one that computes the same."""
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, LoraLinear):
                setattr(parent, name, child.merged())


def merged_state(module: nn.Module) -> dict[str, torch.Tensor]:
    """Return the state dict that the module would have after `merge_lora`; the module does not change."""
    state: dict[str, torch.Tensor] = module.state_dict()
    for name, child in module.named_modules():
        if isinstance(child, LoraLinear):
            state[f"{name}.weight"] = child.merged_weight()
            for matrix in _MATRICES:
                del state[f"{name}.{matrix}"]
    return state


def is_lora(parameter_name: str) -> bool:
    """Return whether a parameter, by its full name, is one of LoRA's matrices."""
    return parameter_name.endswith(_MATRICES)
