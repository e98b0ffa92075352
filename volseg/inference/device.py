"""Where a network runs, and in which precision."""

from __future__ import annotations

import torch

from volseg.errors import ConfigError


def choose_device(name: str | torch.device = "auto") -> torch.device:
    """The named device, or the fastest there is.

    Raises:
        ConfigError: There is no such device here.
    """
    if str(name) == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(
            "there is no such device here", found=name, expected="auto, cpu, cuda, cuda:1, mps", mend="use device cpu"
        ) from error
    return device


def has_native_bf16(device: torch.device) -> bool:
    """Whether the hardware computes in bf16; where it is emulated it is far slower than float32."""
    return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
