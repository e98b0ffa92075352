"""A scan through all stages of prediction, and the predict commands of volseg and nnU-Net, start-up included."""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import nibabel
import numpy as np

from prediction import nnunet_environment as nnunet
from prediction.networks import hippocampus_plan, model_file, plan_for
from shared.measure import timed
from shared.record import ROOT, cores, save
from shared.text import minutes_text, say
from volseg.geometry.interpolate import apply_matrices
from volseg.geometry.resample import image_matrices
from volseg.inference.cohort.run import predict_folder
from volseg.inference.predictor import Predictor
from volseg.io.datasets import read_dataset
from volseg.io.volumes import read_volume

SCAN = Path("CT_example") / "ct_trunk_3mm.nii.gz"
QUICK_SCAN = Path("CT_example") / "ct_trunk_3mm_part.nii.gz"
WORKING_MM, QUICK_MM, CLASSES = 1.5, 6.0, 25
CASES = 5


def pipeline(args: argparse.Namespace) -> None:
    """Measure the stages of one scan, stored at 1.5 mm or at 3 mm; the plan's spacing is 1.5 mm."""
    working_mm = QUICK_MM if args.quick else WORKING_MM
    plan = plan_for((8, 32, 32) if args.quick else (32, 128, 128), 8, 4 if args.quick else CLASSES, working_mm)
    encoder = "tiny" if args.quick else "dinov2_s14"
    say(f"pipeline: {'a minute' if args.quick else 'a quarter of an hour on two cores'} for each of two runs")
    for stored_mm in (working_mm, 2 * working_mm):
        started = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            scan = stored_at(args.data / (QUICK_SCAN if args.quick else SCAN), stored_mm, Path(folder) / "trunk.nii.gz")
            predictor = Predictor.from_file(model_file(Path(folder) / "model.safetensors", plan, encoder), device="cpu")
            wall_s, summary = timed(lambda p=predictor, s=scan, f=folder: predict_folder(p, s, Path(f) / "masks"))
            (case,) = summary.results
            shape = read_volume(scan).grid.shape
        if case.status != "done":
            raise SystemExit(f"the scan could not be predicted: {case.error}")
        seconds = dict(case.seconds)
        result = {"seconds": seconds, "wall_s": wall_s, "share_besides_network": 1 - seconds["network"] / wall_s}
        result |= {"peak_rss_mb": case.peak_rss_mb, "counts": dict(case.counts)}
        settings = {"encoder": encoder, "stored_mm": stored_mm, "working_mm": working_mm, "shape": shape}
        settings |= {"classes": plan.num_classes, "window": plan.patch_size, "token_stride": plan.token_stride}
        save(args.out, f"pipeline_{stored_mm:g}mm", settings, result, time.perf_counter() - started)


def stored_at(scan: Path, spacing_mm: float, target: Path) -> Path:
    """Write the scan as an int16 file of cubic voxels."""
    volume = read_volume(scan)
    grid, matrices = image_matrices(volume.grid, (spacing_mm,) * 3)
    data = apply_matrices(volume.data, matrices)
    nibabel.save(nibabel.Nifti1Image(np.rint(data[0]).astype(np.int16), grid.affine), target)
    return target


def shell(args: argparse.Namespace) -> None:
    """Time five hippocampus cases by each command, in turns, each in a new process; start-up is included."""
    ready = nnunet.check_ready(args.nnunet)
    plan = hippocampus_plan()
    for encoder in args.encoders:
        started = time.perf_counter()
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            cases = read_dataset(args.data / "Task04_Hippocampus").cases[: 2 if args.quick else CASES]
            (folder / "scans").mkdir()
            for case in cases:
                shutil.copyfile(case.images[0], folder / "scans" / f"{case.id}_0000.nii.gz")
            ours = ours_command(model_file(folder / "model.safetensors", plan, encoder), folder)
            commands = {"ours": ours, "ours, mirrored": [*ours, "--tta"]}
            if ready:
                theirs = nnunet_command(args.nnunet, folder)
                commands |= {"nnunet": [*theirs, "--disable_tta"], "nnunet, mirrored": theirs}
            say(f"shell, {encoder}: about {minutes_text(args.pairs * 140)}")
            runs = [
                {name: command_seconds(command, folder / "masks", len(cases)) for name, command in commands.items()}
                for _ in range(args.pairs)
            ]
        settings = {"encoder": encoder, "cases": [case.id for case in cases], "threads": cores()}
        settings |= {"nnunet": nnunet.installed_version(args.nnunet) if ready else None}
        settings |= {"mirror_axes": {"ours": plan.mirror_axes, "nnunet": (0, 1, 2)}}
        result = {"runs": runs, "seconds": {key: statistics.median(run[key] for run in runs) for key in commands}}
        result["ratio"] = {
            key: statistics.median(run[key.replace("ours", "nnunet")] / run[key] for run in runs)
            for key in ("ours", "ours, mirrored")
            if ready
        }
        save(args.out, f"shell_{encoder}", settings, result, time.perf_counter() - started)


def ours_command(model: Path, folder: Path) -> list[str]:
    """Return the command of ``tools/predict.py`` on the scans."""
    command = [sys.executable, str(ROOT / "tools" / "predict.py"), "--model", str(model), "--device", "cpu"]
    return [*command, "--input", str(folder / "scans"), "--output", str(folder / "masks")]


def nnunet_command(environment: Path, folder: Path) -> list[str]:
    """Return nnU-Net's command for a model folder, on the same scans."""
    command = [nnunet.command(environment, "nnUNetv2_predict_from_modelfolder"), "-device", "cpu", "-f", "0"]
    command += ["-m", str(nnunet.model_folder(environment)), "--disable_progress_bar"]
    return [*command, "-i", str(folder / "scans"), "-o", str(folder / "masks")]


def command_seconds(command: list[str], output: Path, expected: int) -> float:
    """Return the wall time of a command, with as many threads as there are cores."""
    shutil.rmtree(output, ignore_errors=True)
    environment = os.environ if command[0] == sys.executable else nnunet.clean_environment()
    started = time.perf_counter()
    done = subprocess.run(
        command, env={**environment, "OMP_NUM_THREADS": str(cores())}, capture_output=True, text=True, check=False
    )
    seconds = time.perf_counter() - started
    written = len(list(output.glob("*.nii.gz")))
    if done.returncode or written != expected:
        raise SystemExit(f"{Path(command[0]).name} wrote {written} of {expected} masks:\n{done.stderr[-2000:]}")
    say(f"  {Path(command[0]).name} {'--tta' if '--tta' in command else ''}: {seconds:.1f} s")
    return seconds
