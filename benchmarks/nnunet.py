"""nnU-Net in an environment of its own: set up a model for speed, or train and score it beside volseg's networks.

    python benchmarks/nnunet.py setup --data ../shared/data/Task04_Hippocampus        # about 10 minutes, 2 GB of disk
    python benchmarks/nnunet.py train --data DIR --budget-minutes 60 --device cuda    # a cell that compare.py reads

The environment lies in ``benchmarks/.nnunet`` (ignored by git) and is made where it is missing, so the project's own
packages are untouched.

``setup`` is needed once by the measurements of speed and memory. nnU-Net plans the data set itself; its network is
built from these plans with random weights and stored as its training stores it.

``train`` writes ``<out>/<data set>/<budget>/nnunet/fold<n>_seed<n>``. The data set, in any layout that volseg reads, is
converted by ``volseg convert``, the split is volseg's, and nnU-Net's own commands plan, preprocess, train
(``nnUNetv2_train``, configuration 3d_fullres) and predict the held-out cases (``nnUNetv2_predict`` with the final
checkpoint and mirroring, its default); volseg scores the masks as its own. The trainer is nnU-Net's default one, whose
learning rate follows elapsed time and which ends with the budget. The budget counts training steps; planning,
preprocessing, the first steps of torch.compile (on a GPU) and nnU-Net's validation on patches are reported apart.
A finished stage is kept, so the command can be repeated after an interruption.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import venv
from pathlib import Path

from prediction import inside_nnunet
from prediction.nnunet_environment import (
    FOLDER,
    clean_environment,
    command,
    installed_version,
    model_folder,
    run_inside,
)
from training.nnunet_cell import NnunetCell
from training.runs import folder_name
from volseg.config.schema import DataConfig
from volseg.io.datasets import read_dataset

REQUIREMENTS = ("torch===2.13.0", "nnunetv2==2.8.1")
"""``===`` takes the package index's build also where a local one (``+cpu``) is at hand: its torchvision needs that."""
DATASET = "Dataset004_Hippocampus"


def main() -> int:
    """Set up the environment and its model, or train a cell."""
    args = parse_arguments()
    folder = args.folder.resolve()
    install(folder)
    if args.action == "train":
        train(folder, args)
    else:
        if not model_folder(folder).exists():
            make_model(folder, args.data, args.processes)
        print(f"nnU-Net {installed_version(folder)}: {model_folder(folder).relative_to(folder)}")
    return 0


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    actions = parser.add_subparsers(dest="action", required=True)
    setup = actions.add_parser("setup", help="environment and a model folder with random weights")
    setup.add_argument("--data", type=Path, required=True, help="Task04_Hippocampus of the Decathlon")
    training = actions.add_parser("train", help="train, predict and score a cell of compare.py")
    training.add_argument("--data", required=True, help="data set folder, in any layout")
    training.add_argument("--fold", type=int, default=0, help="held out (%(default)s)")
    training.add_argument("--seed", type=int, default=0, help="of the initial weights (%(default)s)")
    training.add_argument("--splits", help="split file, as data.splits (the folds of volseg)")
    training.add_argument(
        "--spacing", type=float, nargs=3, help="mm, instead of the planned one, in the order of its axes"
    )
    training.add_argument("--budget-minutes", type=float, required=True, help="of training steps")
    training.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    training.add_argument("--threads", type=int, default=1, help="of training on a CPU (%(default)s)")
    training.add_argument("--out", type=Path, default=Path("runs") / "compare", help="run folders (%(default)s)")
    for action in (setup, training):
        action.add_argument("--folder", type=Path, default=FOLDER, help="the environment and its model (%(default)s)")
        action.add_argument("--processes", type=int, default=1, help="processes beside training (%(default)s)")
    return parser.parse_args()


def train(environment: Path, args: argparse.Namespace) -> None:
    """Train, predict and score a cell, as far as it is not finished, and print its scores."""
    budget = args.out.resolve() / folder_name(read_dataset(args.data))
    cell = NnunetCell(
        environment=environment,
        shared=budget / "_".join(["nnunet_data", *(f"{spacing:g}" for spacing in args.spacing or ())]),
        folder=budget / f"{args.budget_minutes:g}min" / "nnunet" / f"fold{args.fold}_seed{args.seed}",
        data=DataConfig(root=args.data, fold=args.fold, splits=args.splits),
        seed=args.seed,
        budget_s=60 * args.budget_minutes,
        device=args.device,
        threads=args.threads,
        processes=args.processes,
        spacing_mm=args.spacing,
    )
    print(json.dumps(cell.run(), indent=1))


def install(folder: Path) -> None:
    """Make the environment and install nnU-Net, if they are missing."""
    if not Path(command(folder, "python")).exists():
        venv.create(folder, with_pip=True)
    if not Path(command(folder, "nnUNetv2_predict_from_modelfolder")).exists():
        pip = [command(folder, "python"), "-m", "pip", "install", "--quiet", *REQUIREMENTS]
        subprocess.run(pip, env=clean_environment(), check=True)


def make_model(folder: Path, data: Path, processes: int) -> None:
    """Plan the data set by nnU-Net's own commands, and build the network inside of its environment."""
    work = folder / "work"
    raw, planned = work / "raw", work / "preprocessed"
    convert(data, raw / DATASET)
    paths = {"nnUNet_raw": str(raw), "nnUNet_preprocessed": str(planned), "nnUNet_results": str(work / "results")}
    plan = [command(folder, "nnUNetv2_plan_and_preprocess"), "-d", "4", "--no_pp", "-npfp", str(processes)]
    subprocess.run([*plan, "--no_pbar"], env=clean_environment(**paths), check=True, stdout=sys.stderr)
    unfinished = folder / "model.unfinished"
    settings = {"planned": str(planned / DATASET), "raw": str(raw / DATASET), "target": str(unfinished)}
    run_inside(folder, inside_nnunet.make_model, settings)
    unfinished.rename(model_folder(folder))
    shutil.rmtree(work)


def convert(data: Path, target: Path) -> None:
    """Copy a Decathlon folder of one channel in nnU-Net's layout."""
    description = json.loads((data / "dataset.json").read_text(encoding="utf-8"))
    for folder in ("imagesTr", "labelsTr"):
        (target / folder).mkdir(parents=True, exist_ok=True)
    for pair in description["training"]:
        image, label = data / pair["image"], data / pair["label"]
        shutil.copyfile(image, target / "imagesTr" / image.name.replace(".nii.gz", "_0000.nii.gz"))
        shutil.copyfile(label, target / "labelsTr" / image.name)
    document = {
        "channel_names": description["modality"],
        "labels": {name: int(value) for value, name in description["labels"].items()},
        "numTraining": len(description["training"]),
        "file_ending": ".nii.gz",
    }
    (target / "dataset.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
