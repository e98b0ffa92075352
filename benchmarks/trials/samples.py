"""Small inputs of the trials: a data set, runs, models with random weights, and folders of tiny scans."""

from __future__ import annotations

import gzip
import hashlib
import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import nibabel
import numpy as np

from trials.processes import Command, files_below

CASES = 6
NETWORK = ("model.encoder=identity", "model.features=4", "model.max_features=16", "model.weights=random")
TRAINING = (
    "device=cpu",
    "precision=32",
    *NETWORK,
    "plan.patch_size=[8,32,32]",
    "plan.token_stride=8",
    "train.max_minutes=null",
    "train.batch_size=1",
)
SCAN_VOXELS = (16, 24)


def make_data(folder: Path, cases: int = CASES) -> Path:
    """Write a data set of generated CT scans of about 24 x 44 x 57 voxels."""
    from volseg.phantom import write_phantoms

    return write_phantoms(folder, cases)


def make_bids(folder: Path, data: Path) -> Path:
    """Write scans and masks of a data set as BIDS with derivatives; return the place of its table of segments."""
    derivatives = folder / "derivatives" / "masks"
    for number, image in enumerate(sorted((data / "imagesTr").iterdir())):
        for root, name, source in (
            (folder, f"sub-{number}_T1w.nii.gz", image),
            (derivatives, f"sub-{number}_dseg.nii.gz", data / "labelsTr" / image.name),
        ):
            place = root / f"sub-{number}" / "anat"
            place.mkdir(parents=True)
            shutil.copy(source, place / name)
    (folder / "dataset_description.json").write_text('{"Name": "made", "BIDSVersion": "1.8.0"}', encoding="utf-8")
    return derivatives / "dseg.tsv"


def training(data: Path, run: Path, cache: Path, *, steps: int, workers: int = 1, resume: bool = True) -> list[str]:
    """Return the command that trains a tiny network; a checkpoint every four steps, a validation half-way."""
    config = data.parent / "config.yaml"
    config.write_text("{}\n", encoding="utf-8")
    own = [f"data.root={data}", f"output={run}", f"data.cache={cache}", f"data.workers={workers}"]
    own += [f"train.max_steps={steps}", "train.checkpoint_every=4", f"train.validate_every={max(1, steps // 2)}"]
    return ["train", "--config", str(config), *own, *TRAINING, *(["--resume"] if resume else [])]


def training_result(run: Path, cache: Path) -> dict[str, Any]:
    """Return what must not depend on interruptions: weights, log without times, masks, scores, cached cases."""
    from safetensors.numpy import load_file

    tensors = load_file(run / "model.safetensors")
    weights = {name: hashlib.sha256(value.tobytes()).hexdigest() for name, value in tensors.items()}
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [
        {key: value for key, value in json.loads(line).items() if key not in ("elapsed_s", "step_s")} for line in lines
    ]
    masks = {name: sha for name, sha in files_below(run / "validation" / "masks").items() if name.endswith(".nii.gz")}
    cached = {name: sha for name, sha in files_below(cache).items() if "/." not in name}
    scores = (run / "validation" / "scores" / "cases.csv").read_bytes()
    return {"weights": weights, "metrics.jsonl": rows, "masks": masks, "scores": scores, "cached cases": cached}


def make_model(path: Path, seed: int = 0) -> Path:
    """Write a model file with random weights; another seed gives other masks."""
    import torch

    from prediction.networks import plan_for
    from volseg.config.schema import Config, ModelConfig
    from volseg.io.model_file import save_model
    from volseg.models.build import build_model

    plan = plan_for((16, 16, 16), 8, 3)
    model = ModelConfig(encoder="identity", weights="random", features=4, max_features=16)
    torch.manual_seed(seed)
    network = build_model(model, plan)
    metadata = {"config": asdict(Config(model=model)), "plan": plan.to_dict(), "labels": plan.labels}
    save_model(path, network.state_dict(), metadata)
    return path


def make_scans(folder: Path, count: int, seed: int = 0) -> Path:
    """Write scans of 16 to 24 voxels along each axis."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    for number in range(count):
        shape = rng.integers(SCAN_VOXELS[0], SCAN_VOXELS[1] + 1, 3)
        image = nibabel.Nifti1Image(rng.normal(0, 300, shape).astype(np.int16), np.eye(4))
        (folder / f"scan_{number:03d}.nii.gz").write_bytes(gzip.compress(image.to_bytes(), 1))
    return folder


def predicting(model: Path, scans: Path, masks: Path, *more: object) -> list[str]:
    """Return the command that predicts a folder."""
    return [
        "predict",
        "--model",
        str(model),
        "--input",
        str(scans),
        "--output",
        str(masks),
        "--device",
        "cpu",
        *map(str, more),
    ]


def masks_below(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of every mask."""
    return {name: sha for name, sha in files_below(folder).items() if name.endswith(".nii.gz")}


def finish(arguments: list[str], folder: Path) -> None:
    """Run a command that must succeed.

    Raises:
        SystemExit: It failed; the trial has no reference then.
    """
    life = Command(arguments, folder).wait()
    if life.code != 0:
        raise SystemExit(f"the uninterrupted run failed with code {life.code}:\n{life.text}")
