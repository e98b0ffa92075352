"""Set up nnU-Net in an environment of its own, with a model folder for hippocampus, without any training.

    python benchmarks/nnunet.py --data ../shared/data/Task04_Hippocampus    # about 10 minutes, 2 GB of disk

Needed once; repeated, it completes an unfinished set-up. The environment lies in ``benchmarks/.nnunet`` (ignored by
git), so the project's own packages are untouched. nnU-Net plans the data set itself; its network is built from these
plans with random weights and stored as its training stores it. Speed and memory do not depend on the weights, but
accuracy does: nothing here is for comparing accuracy.
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

REQUIREMENTS = ("torch==2.13.0", "nnunetv2==2.8.1")
DATASET = "Dataset004_Hippocampus"


def main() -> int:
    """Set up the missing parts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="Task04_Hippocampus of the Decathlon")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="the environment and its model (%(default)s)")
    parser.add_argument("--processes", type=int, default=1, help="processes of nnU-Net's planning (%(default)s)")
    args = parser.parse_args()
    folder = args.folder.resolve()
    install(folder)
    if not model_folder(folder).exists():
        make_model(folder, args.data, args.processes)
    print(f"nnU-Net {installed_version(folder)}: {model_folder(folder).relative_to(folder)}")
    return 0


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
