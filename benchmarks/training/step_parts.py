"""Time of a training step and of its parts, measured in a process of its own.

Imports of volseg stay inside the functions and few: the same code measures checkouts of older commits.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from shared.measure import timed
from training.patch import Patch

WARM_UP = 2


def measure(config: str, patch: list[int], steps: int, settings: list[str]) -> dict[str, Any]:
    """Return the median seconds of the whole step and of each part, forward and backward, on noise.

    Args:
        config: YAML file.
        patch: Voxels of the patch, D, H, W.
        steps: Timed calls of each part.
        settings: ``key=value``.
    """
    from volseg.config.load import load_config
    from volseg.heap import reuse_freed_memory
    from volseg.planning.nnunet import MIN_BATCH
    from volseg.training.state import TrainingState

    reuse_freed_memory()  # as `volseg train` does
    configuration = load_config(Path(config), ["output=unused", *settings])
    depth, height, width = patch
    plan = Patch((depth, height, width), **configuration.plan)
    state = TrainingState(configuration, plan)
    model, batch = state.model.train(), configuration.train.batch_size or MIN_BATCH
    image = torch.randn(batch, plan.num_channels, depth + 2 * model.halo, height, width)
    label = torch.randint(plan.num_classes, (batch, depth, height, width))
    dtype = dtype_of(configuration, state.device)
    calls = part_calls(model, image, torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16))
    calls["whole step"] = lambda: state.step([{"image": image, "label": label}], 0, 0.5)
    return {
        "seconds": {name: median_seconds(call, steps) for name, call in calls.items()},
        "patch": list(plan.patch_size),
        "batch": batch,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "precision": str(dtype).removeprefix("torch."),
    }


def dtype_of(configuration: Any, device: Any) -> torch.dtype:
    """Return the precision of training that the measured source chooses."""
    try:
        from volseg.device import training_dtype
    except ImportError:  # commits before volseg.device
        from volseg.training.state import compute_dtype

        return compute_dtype(configuration, device)
    return training_dtype(configuration.precision, device)


def part_calls(model: Any, image: Tensor, precision: AbstractContextManager[Any]) -> dict[str, Callable[[], Any]]:
    """Return a call for each part, forward and backward, on the inputs that it gets in the network."""
    centre = image[:, :, model.halo : image.shape[2] - model.halo]
    with precision:
        taps = [tap.detach().requires_grad_() for tap in model.encode(image)]
        mixed = [tap.detach().requires_grad_() for tap in model.aggregator(taps, model.spacing_mm)]
    calls: dict[str, Callable[[], Any]] = {}
    if taps:
        calls["encoder"] = lambda: forward_backward(precision, lambda: model.encode(image))
        calls["aggregator"] = lambda: forward_backward(precision, lambda: model.aggregator(taps, model.spacing_mm)[-1:])
    calls["decoder"] = lambda: forward_backward(precision, lambda: decode(model, mixed, centre))
    return calls


def decode(model: Any, mixed: list[Tensor], centre: Tensor) -> list[Tensor]:
    """Run the decoder alone, on taps that the aggregator has mixed."""
    from volseg.models.contracts import pad_to_multiple

    multiple = model.decoder.multiple
    taps = [pad_to_multiple(tap, (multiple[0], 1, 1)) for tap in mixed]
    return list(model.decoder(pad_to_multiple(centre, multiple), taps))


def forward_backward(precision: AbstractContextManager[Any], part: Callable[[], list[Tensor]]) -> None:
    """Run a part in a precision, and backward from a gradient of ones at every output."""
    with precision:
        outputs = [output for output in part() if output.requires_grad]
    torch.autograd.backward(outputs, [torch.ones_like(output) for output in outputs])


def median_seconds(call: Callable[[], Any], repeats: int) -> float:
    """Return the median wall time of some calls after warming up."""
    timed(call, WARM_UP)
    return round(timed(call, repeats)[0], 4)
