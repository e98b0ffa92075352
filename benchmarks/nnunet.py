"""nnU-Net in a virtual environment of its own, and a model folder of it for hippocampus, without any training.

    python benchmarks/nnunet.py --data ../shared/data/Task04_Hippocampus    # about 10 minutes, 2 GB of disk

Made once; given again, it does what is missing. The environment lies apart (``benchmarks/.nnunet``, ignored by git), so
the project's own is never touched. nnU-Net plans the data set itself; its network is then built from these plans with
random weights and stored as training would have stored it. Speed and memory do not depend on the weights, accuracy
does: nothing here may be used to compare accuracy.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
FOLDER = HERE / ".nnunet"
REQUIREMENTS = ("torch==2.13.0", "nnunetv2==2.8.1")
DATASET = "Dataset004_Hippocampus"
CONFIGURATION = "3d_fullres"


def main() -> int:
    """Set up what is missing."""
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


def model_folder(folder: Path = FOLDER) -> Path:
    """What ``nnUNetv2_predict_from_modelfolder -m`` takes."""
    return folder / "model"


def command(folder: Path, name: str) -> str:
    """Path of an executable of the environment."""
    return str(folder / "bin" / name)


def is_ready(folder: Path = FOLDER) -> bool:
    """Whether the environment and the model folder are there."""
    return (model_folder(folder) / "plans.json").exists() and Path(command(folder, "python")).exists()


def run_child(folder: Path, *arguments: str) -> dict[str, Any]:
    """Run ``nnunet_child.py`` inside the environment; its last line is JSON."""
    done = subprocess.run(
        [command(folder, "python"), str(HERE / "nnunet_child.py"), *arguments],
        env=clean_environment(),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return dict(json.loads(done.stdout.splitlines()[-1]))


def clean_environment(**more: str) -> dict[str, str]:
    """The process's environment without what would lead Python to the project's packages."""
    kept = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}
    return kept | more


def installed_version(folder: Path) -> str:
    """Version of nnU-Net in the environment."""
    code = "from importlib.metadata import version; print(version('nnunetv2'))"
    done = subprocess.run([command(folder, "python"), "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def install(folder: Path) -> None:
    """Make the environment and install what is missing in it."""
    if not Path(command(folder, "python")).exists():
        venv.create(folder, with_pip=True)
    if not Path(command(folder, "nnUNetv2_predict_from_modelfolder")).exists():
        pip = [command(folder, "python"), "-m", "pip", "install", "--quiet", *REQUIREMENTS]
        subprocess.run(pip, env=clean_environment(), check=True)


def make_model(folder: Path, data: Path, processes: int) -> None:
    """Plan the data set by nnU-Net's own commands; the child makes the network."""
    work = folder / "work"
    raw, planned = work / "raw", work / "preprocessed"
    convert(data, raw / DATASET)
    paths = {"nnUNet_raw": str(raw), "nnUNet_preprocessed": str(planned), "nnUNet_results": str(work / "results")}
    plan = [command(folder, "nnUNetv2_plan_and_preprocess"), "-d", "4", "--no_pp", "-npfp", str(processes)]
    subprocess.run([*plan, "--no_pbar"], env=clean_environment(**paths), check=True, stdout=sys.stderr)
    unfinished = folder / "model.unfinished"
    run_child(folder, "model", str(planned / DATASET), str(raw / DATASET), str(unfinished), CONFIGURATION)
    unfinished.rename(model_folder(folder))
    shutil.rmtree(work)


def convert(data: Path, target: Path) -> None:
    """A Decathlon folder of one channel in nnU-Net's layout."""
    described = json.loads((data / "dataset.json").read_text(encoding="utf-8"))
    for folder in ("imagesTr", "labelsTr"):
        (target / folder).mkdir(parents=True, exist_ok=True)
    for pair in described["training"]:
        image, label = data / pair["image"], data / pair["label"]
        shutil.copyfile(image, target / "imagesTr" / image.name.replace(".nii.gz", "_0000.nii.gz"))
        shutil.copyfile(label, target / "labelsTr" / image.name)
    document = {
        "channel_names": described["modality"],
        "labels": {name: int(value) for value, name in described["labels"].items()},
        "numTraining": len(described["training"]),
        "file_ending": ".nii.gz",
    }
    (target / "dataset.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
