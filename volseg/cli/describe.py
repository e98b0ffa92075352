"""Print the cost of each part of a network: parameters, multiply-accumulates, activations, strides."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from volseg.api import plan_dataset
from volseg.cli.default_config import CONFIG_HELP, default_config
from volseg.cli.progress import progress_bars
from volseg.errors import ConfigError, counted

if TYPE_CHECKING:
    from volseg.config.schema import Config, ModelConfig
    from volseg.models.describe import PartCost
    from volseg.planning.plan import Plan

HEAD = ("part", "parameters", "trainable", "GMACs", "kept MB", "output strides")
NOTES = """\
patch {patch} voxels, {channels}, {classes}
GMACs: one patch in prediction; matrix products, convolutions and attention, not norms, activations or interpolation
kept MB: activations that autograd keeps of one training batch ({batch}, shared out among the processes of
  torchrun) in float32, counted on the meta device;
  the peak also holds weights, gradients, the optimizer's state, the loss and temporary tensors
{comparison}:
  {activations} of activations, gradients, loss and temporary tensors at their peak, {weights} of weights and
  their average, {optimizer} of the optimizer's state; Python with its libraries (about 0.4 GB) and data.workers,
  which are processes of their own, are not counted"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("config", nargs="?", metavar="CONFIG", help=CONFIG_HELP)
    parser.add_argument("--plan", metavar="FILE", help="plan file (default: derive the plan of data.root)")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings, for example data.root=DIR")


def run(args: argparse.Namespace) -> int:
    """Print the table and its notes."""
    from volseg.config.load import load_config

    if args.config is not None and "=" in args.config and not Path(args.config).is_file():
        args.overrides, args.config = [args.config, *args.overrides], None
    args.config = args.config or default_config(args.overrides)
    config = load_config(args.config, args.overrides)

    from volseg.config.sizes import format_size
    from volseg.models.describe import describe_model
    from volseg.planning.reasons import field_of_convolutions
    from volseg.training.memory import compare_with_free, step_memory

    network_plan = _plan(config, args.plan)
    batch = config.train.batch_size or network_plan.batch_size
    print(table(describe_model(config.model, network_plan, batch)))
    print()
    sizes = {
        "channels": counted(network_plan.num_channels, "channel"),
        "classes": counted(network_plan.num_classes, "class"),
        "batch": counted(batch, "patch"),
    }
    needed = step_memory(config, network_plan, batch)
    memory = {name: format_size(size) for name, size in asdict(needed).items()}
    comparison = compare_with_free(config, needed.total)[1]
    print(NOTES.format(patch=" x ".join(map(str, network_plan.patch_size)), comparison=comparison, **sizes, **memory))
    if config.model.baseline is None and config.model.encoder != "identity":
        print(encoder_note(config.model, network_plan))
        print(attention_note(config))
    if config.model.baseline is None and config.model.decoder == "unetr":
        print(field_of_convolutions(network_plan).lower())
    return 0


def encoder_note(model: ModelConfig, plan: Plan) -> str:
    """Return the size at which a slice of a patch enters the encoder, and its tokens."""
    from volseg.config.encoders import CATALOGUE
    from volseg.models.build import token_stride

    patch, stride = CATALOGUE[model.encoder].patch, token_stride(model, plan)
    rows, columns = (side // stride for side in plan.patch_size[1:])
    return (
        f"a slice enters the encoder with {counted(f'{patch / stride:.3g}', 'pixel')} per voxel: {rows * patch} x "
        f"{columns * patch} pixels, {rows} x {columns} tokens of {stride} x {stride} voxels"
    )


def attention_note(config: Config) -> str:
    """Return which attention kernel the run uses, and for each kernel whether it runs on the device or why not."""
    from volseg.config.encoders import CATALOGUE
    from volseg.models.attention import kernel_states
    from volseg.training.memory import precision_text, run_precision

    head_size = CATALOGUE[config.model.encoder].head_size
    states = kernel_states(head_size, *run_precision(config))
    lines = [f"attention: {config.model.attention}, in {precision_text(config)}, {head_size} channels per head"]
    return "\n".join([*lines, *(f"  {name} {state}" for name, state in states.items())])


def table(parts: list[PartCost]) -> str:
    """Return an aligned table: a line per part and a total."""
    rows = [
        (
            part.name,
            f"{part.parameters:,}",
            f"{part.trainable:,}",
            _number(part.macs / 1e9),
            _number(part.kept_bytes / 1e6),
            " ".join("x".join(map(str, stride)) for stride in dict.fromkeys(part.strides)),
        )
        for part in parts
    ]
    sums = [sum(getattr(part, name) for part in parts) for name in ("parameters", "trainable", "macs", "kept_bytes")]
    total = ("total", f"{sums[0]:,}", f"{sums[1]:,}", _number(sums[2] / 1e9), _number(sums[3] / 1e6), "")
    lines = [HEAD, *rows, total]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            [
                line[0].ljust(widths[0]),
                *(cell.rjust(w) for cell, w in zip(line[1:5], widths[1:5], strict=True)),
                line[5],
            ]
        ).rstrip()
        for line in lines
    )


def _number(value: float) -> str:
    """Return a number with at least three digits."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _plan(config: Config, file: str | None) -> Plan:
    """Return the plan that training would use, or a plan file with the configuration's overrides."""
    from volseg.planning.derive import revise_plan
    from volseg.planning.plan import Plan
    from volseg.planning.settings import PlanSettings

    settings = PlanSettings.read(config.plan)
    if file is not None or settings.file is not None:
        return revise_plan(Plan.load(file or str(settings.file)), settings.overrides)
    if config.data.root is None:
        raise ConfigError("no data set is given", hint="add data.root=FOLDER, or --plan FILE")
    with progress_bars() as progress:
        workers = config.data.workers
        return plan_dataset(config.data.root, config=config, workers=workers, progress=progress).plan
