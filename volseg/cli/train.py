"""Train a model on a data set, then predict and score the held-out cases."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from volseg.cli.heap import reuse_freed_memory

if TYPE_CHECKING:
    from volseg.training.experiment import Experiment


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("--config", required=True, metavar="FILE", help="YAML file, for example configs/default.yaml")
    parser.add_argument("--resume", action="store_true", help="go on with an interrupted run")
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="key=value",
        help="settings, for example data.root=DIR output=runs/x train.max_minutes=30 plan.token_stride=4",
    )


def run(args: argparse.Namespace) -> int:
    """Train.

    Returns:
        0 when every held-out case was predicted and scored, otherwise 1.
    """
    from volseg.config.load import load_config

    reuse_freed_memory()
    config = load_config(args.config, args.overrides)  # before anything heavy is imported: a typo shows at once

    from volseg.cli.progress import progress_bar
    from volseg.training.experiment import prepare
    from volseg.training.loop import check_settings, train

    check_settings(config, resume=args.resume)
    experiment = prepare(config, progress_bar, resume=args.resume)
    model_file = train(experiment, progress_bar, resume=args.resume)
    code = _validate(experiment, model_file)
    print(f"model: {model_file}")
    return code


def _validate(experiment: Experiment, model_file: Path) -> int:
    """Predict and score all held-out cases into ``validation/``, as a user would."""
    from volseg.cli.evaluate import evaluate
    from volseg.cli.progress import progress_bar
    from volseg.inference.cohort.run import predict_folder
    from volseg.inference.predictor import Predictor
    from volseg.io.labels import make_label_map

    folder = experiment.folder / "validation"
    predictor = Predictor.from_file(model_file, device=experiment.config.device)
    with progress_bar("predict") as progress:
        predict_folder(predictor, experiment.val_cases, folder / "masks", overwrite=True, progress=progress)
    (references,) = {case.label.parent for case in experiment.val_cases if case.label is not None}
    ignore = experiment.plan.ignore_label
    return evaluate(
        {experiment.folder.name: folder / "masks"},
        references,
        folder / "scores",
        label_map=make_label_map(experiment.plan.labels | ({} if ignore is None else {"ignore": ignore})),
        images=experiment.val_cases[0].images[0].parent,
        cases=[case.id for case in experiment.val_cases],
    )
