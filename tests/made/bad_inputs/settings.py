"""Bad settings: configuration files, ``key=value``, and options of commands."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from tests.made.bad_inputs.cases import BadInput, command
from tests.made.datasets import save_nifti
from volseg.config.load import load_config
from volseg.training.experiment import check_settings


def override(*overrides: str) -> Callable[[], object]:
    """Return an attempt to read settings from the command line."""
    return lambda: load_config(None, overrides)


def configuration(text: str) -> Callable[[], object]:
    """Return an attempt to read a configuration file."""

    def attempt() -> object:
        Path("config.yaml").write_text(text)
        return load_config("config.yaml")

    return attempt


def checked(*overrides: str) -> Callable[[], object]:
    """Return an attempt to check settings as training does before it reads any data."""
    return lambda: check_settings(load_config(None, overrides), resumed=False)


WEIGHTS = "model.weights=random"
SETTINGS = (
    BadInput("A setting with a typing error", "train.max_minute", override("train.max_minute=3")),
    BadInput("A setting that nnU-Net's users look for", "epochs", override("epochs=3")),
    BadInput("A setting in another group", "train.fold", override("train.fold=3")),
    BadInput("A number in words", "train.lr", override("train.lr=fast")),
    BadInput("A number out of range", "train.lr", override("train.lr=-1")),
    BadInput("A choice that does not exist", "model.encoder", override("model.encoder=resnet")),
    BadInput("A probability above 1", "augment.noise", override("augment.noise=1.5")),
    BadInput("A group of settings set as one", "train", override("train=3")),
    BadInput("A setting without a value", "train.lr", override("train.lr")),
    BadInput("Two limits of training", "train.max_steps", override("train.max_steps=9", "train.max_minutes=2")),
    BadInput("No limit of training", "train.max_steps", checked(WEIGHTS)),
    BadInput("A fold that is not a number", "data.fold", override("data.fold=five")),
    BadInput("A pattern that is no regular expression", "data.patient_pattern", override("data.patient_pattern='(p'")),
    BadInput("A size in a unit that does not exist", "data.cache_limit", override("data.cache_limit=20XB")),
    BadInput("Settings that exclude each other", "model.decoder",
             override("model.encoder=identity", "model.decoder=linear")),
    BadInput("A configuration file that is not there", "dmo.yaml", lambda: load_config(demo().replace("e", ""))),
    BadInput("A configuration file with tabs", "config.yaml", configuration("train:\n\tlr: 0.001\n")),
    BadInput("A configuration file that is a list", "config.yaml", configuration("- train\n- data\n")),
    BadInput("A configuration file with a typing error", "config.yaml", configuration("modle:\n  encoder: tiny\n")),
    BadInput("A variable in a configuration file", "config.yaml", configuration("output: ${oc.env:HOME}/run\n")),
    BadInput("A device that does not exist", "cuda:99", checked("device=cuda:99", "train.max_steps=1", WEIGHTS)),
    BadInput("A configuration that does not exist", "gpus", lambda: command("train", "--config", "gpus")),
    BadInput("A configuration of an earlier version", "configs/default.yaml",
             lambda: command("train", "--config", "configs/default.yaml")),
    BadInput("`volseg train` without a data set", "data.root",
             lambda: command("train", "--config", demo(), "data.root=null")),
    BadInput("A word that no setting contains", "batchnorm", lambda: command("settings", "batchnorm")),
    BadInput("`volseg pretrain` without scans", "data.root", lambda: command("pretrain", "device=cpu")),
    BadInput("Pretraining of an encoder that cannot be masked", "model.encoder",
             lambda: command("pretrain", "model.encoder=vit_s16")),
    BadInput("Pretraining with a setting for labels", "train.stop_after",
             lambda: command("pretrain", "train.stop_after=3")),
    BadInput("Pretraining on scans that are too small", "pretrain.token_stride", lambda: pretrain_small_scans()),
)  # fmt: skip


def pretrain_small_scans() -> str:
    """Pretrain on two scans of 20 x 20 x 20 voxels, of which a view has 32 along its side."""
    rng = np.random.default_rng(0)
    for name in "ab":
        save_nifti(Path(f"scans/{name}.nii.gz"), rng.normal(size=(20, 20, 20)).astype(np.float32))
    return command("pretrain", "data.root=scans", "device=cpu", "data.workers=0")


def demo() -> str:
    """Write a configuration that lacks only the data set."""
    Path("demo.yaml").write_text("train: {max_steps: 1}\nmodel: {encoder: tiny, weights: random}\ndevice: cpu\n")
    return "demo.yaml"
