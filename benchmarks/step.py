"""Where a training step's time goes, and how it compares with another state of the source.

    python benchmarks/step.py                                       # this source, configs/hippocampus.yaml
    python benchmarks/step.py --before ../old --pairs 5             # beside a checkout of an older commit
    python benchmarks/step.py --label identity model.encoder=identity

A whole step (network, loss, backward, clipping, optimizer, average of the weights) on a batch of noise of hippocampus'
size, and every part by itself, forward and backward, on what it gets in the network. Sources take turns, each in
processes of its own; ratios are of neighbours, their median is given. Nothing is trained: only time counts.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from record import commit_of, origin, say, table, timed
from training import Patch

ROOT = Path(__file__).resolve().parents[1]
PARTS = ("encoder", "aggregator", "decoder", "whole step")
WARM = 2


def main() -> int:
    """Measure and write the table."""
    args = parse_arguments()
    if args.child:
        print(json.dumps(measure(args)))
        return 0
    sources = {"before": args.before, "after": ROOT} if args.before else {"after": ROOT}
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in sources}
    for _ in range(args.pairs):
        for name, source in sources.items():
            runs[name].append(in_a_process(source, args))
            say(f"{name}: {runs[name][-1]['seconds']}")
    record = {**origin(), "threads": args.threads, "settings": args.settings, "runs": runs}
    record["commits"] = {name: commit_of(source) for name, source in sources.items()}
    stem = args.out / "_".join(filter(None, ("step", args.label)))
    args.out.mkdir(parents=True, exist_ok=True)
    stem.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    stem.with_suffix(".md").write_text(markdown(record), encoding="utf-8")
    print(stem.with_suffix(".md").read_text(encoding="utf-8"))
    return 0


def parse_arguments() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default=ROOT / "configs" / "hippocampus.yaml", type=Path)
    parser.add_argument("--patch", default="40,56,40", help="D,H,W of the patch, voxels of 1 mm (%(default)s)")
    parser.add_argument("--before", type=Path, help="checkout of an older commit")
    parser.add_argument("--pairs", type=int, default=5, help="processes of each source, taking turns (%(default)s)")
    parser.add_argument("--steps", type=int, default=5, help="measured in each process (%(default)s)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--label", help="of the result's file")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results", help="folder of the results")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("settings", nargs="*", metavar="key=value", help="settings")
    return parser.parse_args()


def in_a_process(source: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Seconds of a source's parts."""
    command = [sys.executable, __file__, "--child", "--patch", args.patch, "--config", str(args.config)]
    command += ["--steps", str(args.steps), *args.settings]
    environment = {**os.environ, "PYTHONPATH": str(source), "OMP_NUM_THREADS": str(args.threads)}
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Median seconds of the whole step and of each part, of the volseg that this process imports."""
    import torch

    from volseg.config.load import load_config
    from volseg.training.state import TrainingState

    reuse_memory_as_the_command_does()
    config = load_config(args.config, ["output=unused", *args.settings])
    depth, height, width = (int(side) for side in args.patch.split(","))
    plan = Patch((depth, height, width), **config.plan)
    state = TrainingState(config, plan)
    model, batch = state.model, config.train.batch_size
    image = torch.randn(batch, plan.num_channels, depth + 2 * model.halo, height, width)
    label = torch.randint(plan.num_classes, (batch, depth, height, width))
    model.train()
    centre = image[:, :, model.halo : image.shape[2] - model.halo]
    precision = precision_of_training(config, state.device)
    reduced = torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16)
    with reduced:
        taps = [tap.detach().requires_grad_() for tap in model.encode(image)]
        mixed = [tap.detach().requires_grad_() for tap in model.aggregator(taps, model.spacing_mm)]
    calls: dict[str, Callable[[], Any]] = {}
    if taps:
        calls["encoder"] = lambda: backward(reduced, lambda: model.encode(image))
        calls["aggregator"] = lambda: backward(reduced, lambda: model.aggregator(taps, model.spacing_mm)[-1:])
    calls["decoder"] = lambda: backward(reduced, lambda: decode(model, mixed, centre))
    calls["whole step"] = lambda: state.step({"image": image, "label": label}, 0, 0.5)
    return {
        "seconds": {name: median_seconds(call, args.steps) for name, call in calls.items()},
        "patch": list(plan.patch_size),
        "batch": batch,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "precision": str(precision).removeprefix("torch."),
    }


def decode(model: Any, mixed: list[Any], centre: Any) -> list[Any]:
    """The decoder alone."""
    from volseg.models.contracts import pad_to_multiple

    multiple = model.decoder.strides[-1] if hasattr(model.decoder, "strides") else model.decoder.multiple
    taps = [pad_to_multiple(tap, (multiple[0], 1, 1)) for tap in mixed]
    return list(model.decoder(pad_to_multiple(centre, multiple), taps))


def backward(precision: AbstractContextManager[Any], part: Callable[[], list[Any]]) -> None:
    """A part forward in a precision, and backward from a gradient of ones at every output."""
    import torch

    with precision:
        wanted = [output for output in part() if output.requires_grad]
    torch.autograd.backward(wanted, [torch.ones_like(output) for output in wanted])


def precision_of_training(config: Any, device: Any) -> Any:
    """What the source chooses for this configuration."""
    try:
        from volseg.device import training_dtype
    except ImportError:  # before a CPU could choose
        import torch

        return torch.float32
    return training_dtype(config.precision, device)


def reuse_memory_as_the_command_does() -> None:
    """What ``volseg train`` asks of the allocator, where the source does."""
    try:
        from volseg.cli.heap import reuse_freed_memory
    except ImportError:  # before there was such a thing
        return
    reuse_freed_memory()


def median_seconds(call: Callable[[], Any], repeats: int) -> float:
    """Median wall time of some calls after a few that do not count."""
    timed(call, WARM)
    return round(timed(call, repeats)[0], 4)


def markdown(record: dict[str, Any]) -> str:
    """The table: a row for each part."""
    runs, names = record["runs"], list(record["runs"])
    ratio = ["before / after"] if len(names) > 1 else []
    rows = [["part", *(f"{name}, s" for name in names), *ratio]]
    for part in (part for part in PARTS if part in runs[names[0]][0]["seconds"]):
        seconds = {name: [run["seconds"][part] for run in runs[name]] for name in names}
        rows.append([part, *(f"{statistics.median(seconds[name]):.3f}" for name in names)])
        if ratio:
            pairs = zip(seconds["before"], seconds["after"], strict=True)
            rows[-1].append(f"{statistics.median(one / other for one, other in pairs):.2f}")
    precisions = dict.fromkeys(run["precision"] for of_source in runs.values() for run in of_source)
    first, machine = runs[names[-1]][0], record["hardware"]
    commits = ", ".join(f"{name} {str(commit)[:10]}" for name, commit in record["commits"].items())
    return (
        f"# A training step\n\n{table(rows)}\n\nParts by themselves, forward and backward; batch "
        f"{first['batch']} of {' x '.join(map(str, first['patch']))} voxels, {first['parameters']:,} parameters, "
        f"{' and '.join(precisions)}. {len(runs[names[-1]])} processes of each source, taking turns; medians, ratios "
        "of neighbours. "
        f"{machine['cpu']}, {record['threads']} threads, torch {record['versions']['torch']}, {record['date'][:10]}; "
        f"commits: {commits}; settings: {' '.join(record['settings']) or 'of the configuration'}.\n"
    )


if __name__ == "__main__":
    sys.exit(main())
