"""Which weights of the encoder are trained."""

from __future__ import annotations

from volseg.errors import ConfigError
from volseg.models.slices import SliceEncoder


def adapt(encoder: SliceEncoder, mode: str) -> None:
    """Prepare an encoder, in place, for one kind of adaptation.

    Args:
        encoder: The slice encoder.
        mode: ``full`` trains everything but the mask token. ``frozen`` trains nothing: no gradients, evaluation mode
            whatever ``model.train()`` says, and no graph.

    Raises:
        ConfigError: There is no such mode.
    """
    if mode == "frozen":
        encoder.frozen = True
        encoder.requires_grad_(False)
        encoder.eval()
    elif mode != "full":
        raise ConfigError("model.adaptation has no such choice", found=mode, expected="frozen, full")
