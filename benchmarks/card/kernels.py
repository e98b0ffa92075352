"""Attention kernels on the device: time and memory, forward and backward, and why another does not run."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from card.device import PRECISIONS, precisions
from encoders.attention_cost import measure
from shared.record import Record
from volseg.errors import ConfigError
from volseg.models.attention import try_attention

KERNELS = ("sdpa", "xformers", "math")
HEADS, HEAD_SIZE = 12, 64
TOKENS = {"full": (1370, 5000), "quick": (1370, 5000), "tiny": (64,)}


def rows(device: str, size: str) -> Iterator[Record]:
    """Yield a row for each precision, kernel, number of tokens and direction; one for a kernel that does not run."""
    shared = {"heads": HEADS, "head_size": HEAD_SIZE, "device": device, "threads": torch.get_num_threads()}
    for precision in precisions(device):
        for kernel in KERNELS:
            try:
                try_attention(kernel, HEAD_SIZE, device, PRECISIONS[precision])
            except ConfigError as error:
                yield {"kernel": kernel, "precision": precision, "refused": error.in_short}
                continue
            dtype = str(PRECISIONS[precision]).removeprefix("torch.")
            for tokens in TOKENS[size]:
                for backward in (False, True):
                    cost = measure(kernel, tokens, backward, dtype=dtype, **shared)
                    yield {"kernel": kernel, "precision": precision, "tokens": tokens, "backward": backward, **cost}
