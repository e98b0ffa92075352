"""Where a network runs, and in which precision."""

from __future__ import annotations

import torch

from volseg.errors import ConfigError

DEVICES = ("cpu", "cuda", "mps")


def choose_device(name: str | torch.device = "auto") -> torch.device:
    """The named device, or the fastest there is.

    Raises:
        ConfigError: There is no such device here.
    """
    if str(name) == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        if device.type not in DEVICES:
            raise RuntimeError("not a device that volseg runs on")
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(
            "there is no such device here", found=name, expected="auto, cpu, cuda, cuda:1, mps", hint="use device cpu"
        ) from error
    return device


def has_native_bf16(device: torch.device) -> bool:
    """Whether the hardware computes in bf16: most GPUs, and CPUs with Intel's AMX. Emulated it is far slower."""
    if device.type == "cpu":
        return hasattr(torch.cpu, "get_capabilities") and bool(torch.cpu.get_capabilities().get("amx_bf16"))
    return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)


def prediction_dtype(device: torch.device) -> torch.dtype:
    """Precision of prediction: bf16 on a GPU that has it; float32 on every CPU, so that all give the same mask."""
    return torch.bfloat16 if device.type != "cpu" and has_native_bf16(device) else torch.float32
