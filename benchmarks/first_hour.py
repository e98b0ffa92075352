"""Run every command of the tables in docs/coming_from_nnunet.md: volseg's on real scans, and nnU-Net's own beside them.

    python benchmarks/first_hour.py --data ../shared/data/Task04_Hippocampus                     # volseg, minutes
    python benchmarks/first_hour.py --data ../shared/data/Task04_Hippocampus --tool nnunet       # minutes

The data set is the first 12 cases, the scans to predict are the next 4. Training has few steps and random weights: this
measures whether the commands work, not what they reach. nnU-Net runs in its own environment (``benchmarks/nnunet.py``
makes one), on the CPU, with a trainer of one epoch of 2 steps, without
mirroring. A command has 10 minutes.

Writes ``volseg.json`` or ``nnunet.json``, and ``commands.md`` of both.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

from prediction.nnunet_environment import FOLDER, clean_environment, command, installed_version
from shared.arguments import make_parser
from shared.measure import timed
from shared.record import ROOT, Record, origin, write_json, write_page
from shared.text import origin_text, say, table

LIMIT_S = 600
TITLE = """# The first hour: every command of [Coming from nnU-Net](../../../docs/coming_from_nnunet.md)

12 cases of hippocampus for training, 4 to predict; 2 training steps from random weights, on a CPU. The seconds include
starting the program. Other work ran on the same cores, so they compare nothing. TotalSegmentator was not run: its
weights come over a network. The names of its options are those of version 2.18.0.
"""
DATA, TRAINER = "Task04_Hippocampus", "nnUNetTrainerFirstHour"
SHORT = "device=cpu model.encoder=tiny model.weights=random train.max_steps=2"
TRAIN = f"volseg train --config gpu data.root={DATA} {SHORT}"
RUN = "-i imagesTs -d 4 -c 3d_fullres -tr nnUNetTrainerFirstHour -device cpu -npp 1 -nps 1"
VOLSEG = (
    f"volseg convert {DATA} nnUNet_raw/Dataset004_Hippocampus",
    f"volseg plan {DATA} --check-only",
    f"volseg plan {DATA}",
    f"volseg plan {DATA} --memory 8GB",
    f"{TRAIN} data.fold=0 output=runs/f0",
    f"{TRAIN} data.fold=all output=runs/all",
    "volseg train --resume runs/f0 train.max_steps=3",
    f"{TRAIN} output=runs/tuned model.weights=runs/f0 plan.from=runs/f0",
    f"torchrun --nproc_per_node 2 -m {TRAIN} output=runs/two train.batch_size=2",
    f"volseg crossval --config gpu data.root={DATA} {SHORT} output=runs/cv",
    "volseg predict -m runs/cv -i imagesTs -o masks/tta --tta",
    "volseg predict -m runs/cv -i imagesTs -o masks/plain",
    "volseg predict -m runs/f0 -i imagesTs -o masks/probabilities --probabilities",
    "volseg predict -m runs/f0 -i imagesTs -o masks/shard --shard 0/4",
    "volseg predict -m runs/f0 -i imagesTs -o masks/largest --postprocess largest_component=all",
    f"volseg evaluate --ref labelsTs --pred masks/tta --dataset {DATA}/dataset.json --out scores",
    "volseg predict -m runs/f0/model.safetensors -i imagesTs -o masks/one_file",
    "volseg predict -m runs/f0 -i {scan} -o segmentations --split-classes",
    "volseg predict -m runs/f0 -i {scan} -o segmentation.nii.gz",
    "volseg predict -m runs/f0 -i {scan} -o segmentation.seg.nrrd --device cpu",
    "volseg cache runs/preprocessed",
)
NNUNET = (
    f"nnUNetv2_convert_MSD_dataset -i {DATA} -np 1",
    "nnUNetv2_plan_and_preprocess -d 4 --verify_dataset_integrity -np 1 -npfp 1 -c 3d_fullres",
    "nnUNetv2_plan_experiment -d 4 -gpu_memory_target 8 -overwrite_plans_name nnUNetPlans8GB",
    *(f"nnUNetv2_train 4 3d_fullres {fold} -tr {TRAINER} -device cpu --npz" for fold in (0, 1, 2, 3, 4, "all")),
    f"nnUNetv2_train 4 3d_fullres 0 -tr {TRAINER} -device cpu --c",
    f"nnUNetv2_train 4 3d_fullres 1 -tr {TRAINER}2 -device cpu -pretrained_weights "
    f"nnUNet_results/Dataset004_Hippocampus/{TRAINER}__nnUNetPlans__3d_fullres/fold_0/checkpoint_final.pth",
    f"nnUNetv2_find_best_configuration 4 -c 3d_fullres -tr {TRAINER} -np 1",
    f"nnUNetv2_predict {RUN} -o masks/tta",
    f"nnUNetv2_predict {RUN} -o masks/plain -f 0 --disable_tta",
    f"nnUNetv2_predict {RUN} -o masks/probabilities -f 0 --disable_tta --save_probabilities",
    f"nnUNetv2_predict {RUN} -o masks/shard -f 0 --disable_tta -num_parts 4 -part_id 0",
    "nnUNetv2_apply_postprocessing -i masks/tta -o masks/processed -pp_pkl_file {results}/postprocessing.pkl -np 1 "
    "-plans_json {results}/plans.json -dataset_json {results}/dataset.json",
    "nnUNetv2_evaluate_folder labelsTs masks/tta -djfile masks/tta/dataset.json -pfile masks/tta/plans.json -np 1",
    f"nnUNetv2_export_model_to_zip -d 4 -c 3d_fullres -tr {TRAINER} -o model.zip --not_strict",
)
CODE = f"""
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer


class {TRAINER}(nnUNetTrainer):
    def __init__(self, plans, configuration, fold, dataset_json, device=torch.device("cuda")):
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.num_epochs = 1
        self.num_iterations_per_epoch = 2
        self.num_val_iterations_per_epoch = 1
        torch.set_num_threads(1)

    def configure_rotation_dummyDA_mirroring_and_inital_patch_size(self):
        *rest, _ = super().configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        self.inference_allowed_mirroring_axes = None
        return *rest, None


class {TRAINER}2({TRAINER}):
    pass
"""


def main() -> int:
    """Run the commands of one tool, and write the page of both."""
    args = parse_arguments()
    work = args.runs / args.tool
    shutil.rmtree(work, ignore_errors=True)
    scan = make_data(args.data, work)
    folder = args.nnunet.resolve()
    results = f"nnUNet_results/Dataset004_Hippocampus/{TRAINER}__nnUNetPlans__3d_fullres"
    results = f"{results}/crossval_results_folds_0_1_2_3_4"
    ours = args.tool == "volseg"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)} if ours else nnunet_environment(folder, work)
    numbers = {"tool": f"volseg {version('volseg')}" if ours else f"nnU-Net {installed_version(folder)}"}
    rows: list[Record] = []
    for text in VOLSEG if ours else NNUNET:
        line = text.replace("{scan}", scan).replace("{results}", results)
        rows.append(run(line, work, folder, environment))
        write_json(args.out / f"{args.tool}.json", {**origin(), **numbers, "result": rows})
    write_page(args.out / "commands.md", page(args.out))
    return max(row["code"] for row in rows)


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = make_parser(__doc__, "first_hour")
    parser.add_argument("--data", type=Path, required=True, help="Task04_Hippocampus of the Decathlon")
    parser.add_argument("--tool", choices=("volseg", "nnunet"), default="volseg")
    parser.add_argument("--nnunet", type=Path, default=FOLDER, help="environment of nnU-Net (%(default)s)")
    parser.add_argument("--runs", type=Path, default=Path("runs") / "first_hour", help="work folder (%(default)s)")
    return parser.parse_args()


def make_data(data: Path, work: Path) -> str:
    """Copy 12 cases as a data set and 4 as scans to predict, named for nnU-Net; return the path of a scan."""
    description = json.loads((data / "dataset.json").read_text(encoding="utf-8"))
    known, new = description["training"][:12], description["training"][12:16]
    for pair in known:
        for part in ("image", "label"):
            copy(data / pair[part], work / DATA / pair[part])
    for pair in new:
        name = Path(pair["image"]).name
        copy(data / pair["image"], work / "imagesTs" / name.replace(".nii.gz", "_0000.nii.gz"))
        copy(data / pair["label"], work / "labelsTs" / name)
    (work / DATA / "imagesTs").mkdir()
    write_json(work / DATA / "dataset.json", description | {"training": known, "numTraining": 12, "test": []})
    return str(min((work / "imagesTs").iterdir()).relative_to(work))


def copy(source: Path, target: Path) -> None:
    """Copy a file; the folder is made."""
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


def nnunet_environment(folder: Path, work: Path) -> dict[str, str]:
    """Add the short trainer to nnU-Net's environment and return the variables of its commands."""
    (variants,) = folder.glob("lib/*/site-packages/nnunetv2/training/nnUNetTrainer/variants")
    (variants / "first_hour.py").write_text(CODE, encoding="utf-8")
    paths = {name: str((work / name).resolve()) for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")}
    return clean_environment(
        **paths, nnUNet_n_proc_DA="1", nnUNet_def_n_proc="1", nnUNet_compile="f", OMP_WAIT_POLICY="PASSIVE"
    )


def run(line: str, work: Path, nnunet: Path, environment: dict[str, str]) -> Record:
    """Run a command in the work folder; a failed one has the end of its output."""
    say(line)
    words = shlex.split(line)
    if words[0] == "volseg":
        words = [sys.executable, "-m", *words]
    elif words[0] == "torchrun":
        words = [sys.executable, "-m", "torch.distributed.run", *words[1:]]
    else:
        words[0] = command(nnunet, words[0])
    log = work / "log.txt"
    with log.open("w", encoding="utf-8") as file:
        seconds, code = timed(lambda: _code(words, work, environment, file.fileno()))
    row = {"command": line, "code": code, "seconds": round(seconds, 1)}
    return row if code == 0 else {**row, "output": log.read_text(encoding="utf-8").splitlines()[-12:]}


def _code(words: list[str], work: Path, environment: dict[str, str], output: int) -> int:
    try:
        done = subprocess.run(
            words, cwd=work, env=environment, stdout=output, stderr=output, timeout=LIMIT_S, check=False
        )
    except subprocess.TimeoutExpired:
        return 124
    return done.returncode


def page(folder: Path) -> str:
    """Return the page of what was measured."""
    parts = [TITLE]
    for name in ("volseg", "nnunet"):
        if (folder / f"{name}.json").exists():
            record = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
            rows = [
                [f"`{row['command']}` {row.get('note', '')}".strip(), str(row["code"]), str(row["seconds"])]
                for row in record["result"]
            ]
            head = f"## {record['tool']}\n\n{origin_text(record)}; commands: `{shlex.join(record['command'])}`\n"
            parts.append(f"{head}\n{table([['command', 'exit code', 'seconds'], *rows])}\n")
    return "\n".join(parts)


if __name__ == "__main__":
    sys.exit(main())
