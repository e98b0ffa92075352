"""A whole CT through the commands of volseg and nnU-Net, each with its own network, random weights and plan."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path

from card.scan import CLIP_HU, SIZES, STORED_MM, TOKEN_STRIDE, WORKING_MM, by_command, write_ct
from prediction import inside_nnunet
from prediction.networks import Size, model_file, plan_for
from prediction.nnunet_environment import FOLDER, clean_environment, command
from shared.measure import run_function
from shared.record import Record

NUMBER, NAME = 99, "Dataset099_CT"
CASES = 20
"""Cases of the data set that nnU-Net is told to plan for; only the measured one exists."""
PREDICT = "from nnunetv2.inference.predict_from_raw_data import predict_entry_point_modelfolder as run; run()"


def rows(device: str, size: str) -> Iterator[Record]:
    """Yield the row of volseg's command and that of nnU-Net's, without mirroring, for one made CT.

    nnU-Net is that of this interpreter, or of the environment that ``nnunet.py`` makes.
    """
    encoder, shape, window, classes = SIZES[size]
    shared = {"voxels": list(reversed(shape)), "classes": classes}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        scan = write_ct(folder / "scan" / "ct_0000.nii.gz", shape)
        model = make_model(folder, scan, shape, classes)  # before all else: it fails where nnU-Net is missing
        plan = plan_for(window, TOKEN_STRIDE, classes, WORKING_MM, CLIP_HU)
        ours = by_command(model_file(folder / "model.safetensors", plan, encoder), scan, folder / "volseg", device)
        yield {"way": "volseg predict", "window": list(window), "encoder": encoder, **shared, **ours}
        yield {"way": "nnU-Net", "encoder": encoder, **shared, **by_nnunet(model, scan, folder / "nnunet", device)}


def interpreter() -> tuple[str, Mapping[str, str]]:
    """Return the interpreter that has nnU-Net, and the variables of its processes."""
    if find_spec("nnunetv2") is not None:
        return sys.executable, dict(os.environ)
    if not Path(command(FOLDER, "python")).exists():
        raise RuntimeError("nnU-Net is not installed: python benchmarks/nnunet.py setup --data Task04_Hippocampus")
    return command(FOLDER, "python"), clean_environment()


def make_model(folder: Path, scan: Path, shape: Size, classes: int) -> Path:
    """Let nnU-Net plan a data set of CTs of this size, and store its planned network with random weights."""
    python, variables = interpreter()
    raw, planned = folder / "raw" / NAME, folder / "preprocessed" / NAME
    working = [round(voxels * STORED_MM / WORKING_MM) for voxels in shape]
    labels = {"background": 0} | {f"organ {number}": number for number in range(1, classes)}
    channels = {"channel_names": {"0": "CT"}, "labels": labels, "numTraining": 1, "file_ending": ".nii.gz"}
    spread = {"mean": 0.0, "median": 0.0, "std": CLIP_HU / 2, "min": -CLIP_HU, "max": CLIP_HU}
    spread |= {"percentile_00_5": -CLIP_HU, "percentile_99_5": CLIP_HU}
    fingerprint = {
        "spacings": [[WORKING_MM] * 3] * CASES,
        "shapes_after_crop": [working] * CASES,
        "median_relative_size_after_cropping": 1.0,
        "foreground_intensity_properties_per_channel": {"0": spread},
    }
    for part, name in (("imagesTr", "ct_0000.nii.gz"), ("labelsTr", "ct.nii.gz")):
        (raw / part).mkdir(parents=True)
        (raw / part / name).symlink_to(scan)
    planned.mkdir(parents=True)
    for file, content in ((raw / "dataset.json", channels), (planned / "dataset_fingerprint.json", fingerprint)):
        file.write_text(json.dumps(content), encoding="utf-8")
    places = {"nnUNet_raw": raw.parent, "nnUNet_preprocessed": planned.parent, "nnUNet_results": folder / "results"}
    environment = {**variables, **{name: str(path) for name, path in places.items()}}
    run_function(inside_nnunet.plan, {"number": NUMBER}, python=python, environment=environment)
    settings = {"planned": str(planned), "raw": str(raw), "target": str(folder / "nnunet_model")}
    run_function(inside_nnunet.make_model, settings, python=python, environment=environment)
    return folder / "nnunet_model"


def by_nnunet(model: Path, scan: Path, output: Path, device: str) -> Record:
    """Run nnU-Net's command for a model folder; it tells no stages, and the memory is that of its main process."""
    python, variables = interpreter()
    arguments = ["-i", str(scan.parent), "-o", str(output), "-m", str(model), "-f", "0", "--disable_tta"]
    arguments += ["-device", device.split(":")[0], "--disable_progress_bar"]
    started = time.perf_counter()
    process = subprocess.Popen([python, "-c", PREDICT, *arguments], env=variables, stdout=sys.stderr)
    _, status, usage = os.wait4(process.pid, 0)
    wall_s = time.perf_counter() - started
    if os.waitstatus_to_exitcode(status) or not list(output.glob("*.nii.gz")):
        raise RuntimeError("nnU-Net wrote no mask; see above")
    plans = json.loads((model / "plans.json").read_text(encoding="utf-8"))
    window = plans["configurations"][inside_nnunet.CONFIGURATION]["patch_size"]
    return {
        "seconds": {}, "stages_s": None, "wall_s": round(wall_s, 2), "share_besides_network": None,
        "peak_rss_mb": round(usage.ru_maxrss / 1000), "peak_device_mb": None, "window": window,
    }  # fmt: skip
