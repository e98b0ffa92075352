"""Bad inputs of ``volseg probe`` and ``volseg features``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from tests.made.bad_inputs.cases import BadInput, command
from tests.made.bad_inputs.models import NAME, model
from tests.made.datasets import save_nifti

ENCODER = ("model.encoder=tiny", "model.weights=random", "device=cpu", "data.workers=0")
PROBE = ("probe", "-i", "scans", "-o", "out", "--labels", "labels.csv")


def probe(*rows: str, header: str = "case,label", encoder: tuple[str, ...] = ENCODER) -> Callable[[], str]:
    """Return an attempt to probe two scans, a and b, with these rows of labels."""

    def attempt() -> str:
        for name in "ab":
            save_nifti(Path(f"scans/{name}.nii.gz"), np.eye(8, dtype=np.float32)[None].repeat(8, axis=0))
        Path("labels.csv").write_text("\n".join([header, *rows]) + "\n")
        return command(*PROBE, *encoder)

    return attempt


def slice_beyond_the_scan() -> str:
    for name in "abc":
        save_nifti(Path(f"scans/{name}.nii.gz"), np.eye(8, dtype=np.float32)[None].repeat(8, axis=0))
    parts = {"a": "train", "b": "train", "c": "test"}
    rows = [f"{name},{number % 2},{number},{part}" for name, part in parts.items() for number in (0, 7)]
    Path("labels.csv").write_text("\n".join(["case,label,slice,split", *rows, "c,0,8,test"]))
    return command(*PROBE, *ENCODER)


def features_of_a_model(*overrides: str) -> str:
    model()
    return command("features", "-i", "scans", "-o", "out", "--model", NAME, *overrides)


PROBING = (
    BadInput("Labels without a column `label`", "labels.csv", probe("a,1", "b,0", header="case,labels")),
    BadInput("A scan without a class", "labels.csv", probe("a,1", "b,")),
    BadInput("A scan that is labelled twice", "labels.csv", probe("a,1", "b,0", "a,0")),
    BadInput("Labels that are all the same", "labels.csv", probe("a,1", "b,1")),
    BadInput("A patient on both sides of a split", "labels.csv",
             probe("a,1,p1,train", "b,0,p1,test", header="case,label,patient,split")),
    BadInput("A label of a scan that is not there", "labels.csv", probe("a,1", "b,0", "c,0")),
    BadInput("A scan that has no label", "labels.csv", probe("a,1,0", "a,0,1", header="case,label,slice")),
    BadInput("A slice that the scan does not have", "labels.csv", slice_beyond_the_scan),
    BadInput("A class with fewer patients than folds", "labels.csv", probe("a,1", "b,0")),
    BadInput("`volseg probe` without an encoder", "model.encoder", probe("a,1", "b,0", encoder=())),
    BadInput("Settings of an encoder beside a trained model", "model",
             lambda: features_of_a_model("model.encoder=tiny")),
    BadInput("A trained model without an encoder", NAME, lambda: features_of_a_model("device=cpu")),
)  # fmt: skip
