"""A cell of ``compare.py`` with nnU-Net itself: data in its layout, its commands, scores by volseg."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

import volseg
from prediction.nnunet_environment import clean_environment, command
from shared.measure import BENCHMARKS
from shared.record import Record, commit_of, origin, write_json
from shared.text import say
from training.runs import FINISHED, class_means, read_cases
from training.unchanged import contents
from volseg.config.schema import DataConfig
from volseg.data.split_rules import choose_all_splits, choose_split
from volseg.data.splits import Split
from volseg.errors import OutputError
from volseg.io.datasets import Dataset, read_dataset
from volseg.io.locks import folder_lock

DATASET, CONFIGURATION, TRAINER = "Dataset001_Compared", "3d_fullres", "nnUNetTrainerBudget"
TRAINERS = BENCHMARKS / "training" / "nnunet_trainers"
SOURCE, MADE_OF = "source.json", "nnunet/made_of.json"
"""What the converted data and a training were made of."""
MASKS, SCORES = Path("validation/masks"), Path("validation/scores")


@dataclass(frozen=True, kw_only=True)
class NnunetCell:
    """One training of nnU-Net.

    Attributes:
        environment: Folder of nnU-Net's environment.
        shared: Folder of the data in nnU-Net's layouts, which all cells of a data set share.
        folder: Folder of the cell.
        data: The data set, its split and held-out fold.
        seed: Seed of the initial weights.
        budget_s: Seconds of training.
        device: ``cpu`` or ``cuda``.
        threads: Threads on a CPU.
        processes: Processes of planning, preprocessing and augmentation.
        spacing_mm: Spacing instead of the planned one, in the order of nnU-Net's axes.
    """

    environment: Path
    shared: Path
    folder: Path
    data: DataConfig
    seed: int
    budget_s: float
    device: str
    threads: int
    processes: int
    spacing_mm: Sequence[float] | None = None

    def run(self) -> Record:
        """Do the stages that are not finished, and return the record of the cell.

        Raises:
            SystemExit: A command failed, or the stages that are there are of other data or of another split.
        """
        finished = self.folder / FINISHED
        dataset = read_dataset(str(self.data.root))
        split = choose_split(dataset, self.data, seed=0)
        with held(self.folder):
            self.keep(self.shared / SOURCE, contents(str(self.data.root)))
            parts = {part: split[part] for part in ("train", "val")}
            self.keep(self.folder / MADE_OF, {"settings": self.settings(), **parts})
            if finished.exists():
                self.check_finished(finished, split["val"])
            else:
                with held(self.shared):
                    raw = self.prepare(dataset)
                self.train_and_predict(split["val"])
                self.score(raw, split["val"])
                write_json(finished, self.record())
        return dict(json.loads(finished.read_text(encoding="utf-8")))

    def keep(self, file: Path, content: Record) -> None:
        """Store what the stages are made of, or check that they are made of the same."""
        if not file.exists():
            write_json(file, content)
        elif json.loads(file.read_text(encoding="utf-8")) != content:
            raise SystemExit(f"{file.parent} was made of other cases, split or settings; give another --out")

    def check_finished(self, finished: Path, held_out: Sequence[str]) -> None:
        """Check that a finished cell, also one without a record of what it is made of, is the one that is wanted."""
        settings = json.loads(finished.read_text(encoding="utf-8"))["settings"]
        if settings != self.settings() or {row["case"] for row in read_cases(self.folder)} != {*held_out}:
            raise SystemExit(f"{self.folder} has other settings or held-out cases; give another --out")

    def prepare(self, dataset: Dataset) -> Dataset:
        """Write the data as nnU-Net's raw, plan and preprocess by its commands, and write the split."""
        raw, planned = self.shared / "raw" / DATASET, self.shared / "preprocessed" / DATASET
        if not raw.exists():
            volseg.convert(str(self.data.root), raw, workers=self.processes)
        number = str(self.processes)
        plan = ["nnUNetv2_plan_and_preprocess", "-d", "1", "--no_pp", "-npfp", number, "--no_pbar"]
        if self.spacing_mm:
            plan += ["-overwrite_target_spacing", *(f"{spacing:g}" for spacing in self.spacing_mm)]
        self.stage(self.shared, "planning", plan)
        preprocess = ["nnUNetv2_preprocess", "-d", "1", "-c", CONFIGURATION, "-np", number, "--no_pbar"]
        self.stage(self.shared, "preprocessing", preprocess)
        write_json(planned / "splits_final.json", splits_final(dataset, self.data))
        return read_dataset(raw, trainable=False)

    def train_and_predict(self, held_out: Sequence[str]) -> None:
        """Train by nnU-Net's command, and predict the held-out cases with the final checkpoint and its mirroring."""
        fold, common = str(self.data.fold), ["-tr", TRAINER, "-device", self.device]
        self.stage(self.folder, "training", ["nnUNetv2_train", "1", CONFIGURATION, fold, *common])
        scans = self.folder / "nnunet" / "held_out"
        scans.mkdir(parents=True, exist_ok=True)
        for case in held_out:
            for file in (self.shared / "raw" / DATASET / "imagesTr").glob(f"{case}_????.nii.gz"):
                if not (scans / file.name).exists():
                    (scans / file.name).symlink_to(file)
        where = ["-i", str(scans), "-o", str(self.folder / MASKS), "-d", "1", "-c", CONFIGURATION, "-f", fold]
        number = str(self.processes)
        chosen = ["-chk", "checkpoint_final.pth", "-npp", number, "-nps", number, "--disable_progress_bar"]
        self.stage(self.folder, "prediction", ["nnUNetv2_predict", *where, *chosen, *common])

    def score(self, raw: Dataset, held_out: Sequence[str]) -> None:
        """Score the masks as the end of a training of volseg does; both have the label values of the raw data."""
        cases = [case for case in raw.cases if case.id in set(held_out)]
        if missing := [case.id for case in cases if not (self.folder / MASKS / f"{case.id}.nii.gz").exists()]:
            raise SystemExit(f"nnU-Net wrote no mask of {', '.join(missing)} to {self.folder / MASKS}")
        volseg.evaluate(
            {f"nnunet_seed{self.seed}": self.folder / MASKS},
            {case.id: case.label for case in cases if case.label is not None},
            self.folder / SCORES,
            labels=raw.label_map,
            images={case.id: case.images[0] for case in cases},
            grids=cases[0].grids,
        )

    def record(self) -> Record:
        """Return the record of the cell, with the keys of volseg's cells."""
        trained = json.loads((self.results / f"fold_{self.data.fold}" / "budget.json").read_text(encoding="utf-8"))
        stages = read_stages(self.shared) | read_stages(self.folder)
        source, seconds = origin(), trained["seconds"]
        return {
            "model": "nnunet",
            "settings": self.settings(),
            "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "command": source["command"],
            "commit": stages["training"]["commit"],
            "versions": source["versions"] | trained["versions"],
            "hardware": source["hardware"] | {"threads": trained["threads"], "gpu": trained["gpu"]},
            "device": self.device,
            "seed": self.seed,
            "parameters": trained["parameters"],
            "trained_parameters": trained["parameters"],
            "precision": "float16 autocast" if self.device == "cuda" else "float32",
            "steps": trained["steps"],
            "train_seconds": seconds["training"],
            "compile_seconds": seconds["compilation"],
            "patch_validation_seconds": seconds["validation"],
            **{f"{name}_seconds": stages[name]["seconds"] for name in ("planning", "preprocessing", "prediction")},
            "wall_seconds": round(sum(stages[name]["seconds"] for name in ("training", "prediction")), 1),
            "peak_memory_mb": stages["training"]["peak_memory_mb"],
            **{key: trained[key] for key in ("peak_gpu_memory_mb", "batch_size", "patch_size", "compiled")},
            "mirror_axes": trained["mirror_axes"],
            "scores": class_means(read_cases(self.folder)),
        }

    def settings(self) -> list[str]:
        """Return what the cell sets, in the words of volseg's cells."""
        spacing = [f"plan.spacing_mm={list(self.spacing_mm)}"] if self.spacing_mm else []
        return [f"data.fold={self.data.fold}", f"train.max_minutes={self.budget_s / 60:g}", *spacing]

    @property
    def results(self) -> Path:
        """The model folder of nnU-Net."""
        return self.folder / "nnunet" / "results" / DATASET / f"{TRAINER}__nnUNetPlans__{CONFIGURATION}"

    def stage(self, folder: Path, name: str, arguments: Sequence[str]) -> None:
        """Run a command of nnU-Net and store its seconds and peak memory; a finished one is kept."""
        stages = read_stages(folder)
        if name in stages:
            return
        say(" ".join(arguments))
        commit, started = commit_of(BENCHMARKS), time.perf_counter()
        log = folder / "nnunet" / f"{name}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("w", encoding="utf-8") as file:
            full = [command(self.environment, arguments[0]), *arguments[1:]]
            process = subprocess.Popen(full, env=self.variables(), stdout=file, stderr=file)
            _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode != 0:
            raise SystemExit(f"{arguments[0]} failed, see {log}; the same command goes on from here")
        seconds = round(time.perf_counter() - started, 1)
        stages[name] = {"seconds": seconds, "peak_memory_mb": round(usage.ru_maxrss / 1000), "commit": commit}
        write_json(folder / "nnunet" / "stages.json", stages)

    def variables(self) -> dict[str, str]:
        """Return the variables of nnU-Net's commands."""
        paths = {"raw": self.shared / "raw", "preprocessed": self.shared / "preprocessed"}
        paths["results"] = self.folder / "nnunet" / "results"
        return clean_environment(
            **{f"nnUNet_{name}": str(path) for name, path in paths.items()},
            nnUNet_extTrainer=str(TRAINERS),
            PYTHONPATH=str(BENCHMARKS),
            NNUNET_BUDGET_S=str(self.budget_s),
            NNUNET_SEED=str(self.seed),
            OMP_NUM_THREADS=str(self.threads),
            nnUNet_n_proc_DA=str(self.processes),
        )


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Keep other commands from writing to a folder while the block runs.

    Raises:
        SystemExit: Another one does.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with folder_lock(folder, "nnunet.py train"):
            yield
    except OutputError as error:
        raise SystemExit(str(error)) from error


def splits_final(dataset: Dataset, data: DataConfig) -> list[Split]:
    """Return volseg's splits as nnU-Net's ``splits_final.json``: entry k is fold k, empty where there is none."""
    folds = choose_all_splits(dataset, data, seed=0)
    empty: Split = {"train": [], "val": []}
    return [
        {part: folds[number][part] for part in ("train", "val")} if number in folds else empty
        for number in range(max(folds) + 1)
    ]


def read_stages(folder: Path) -> dict[str, Record]:
    """Return the finished stages of a folder."""
    file = folder / "nnunet" / "stages.json"
    return dict(json.loads(file.read_text(encoding="utf-8"))) if file.exists() else {}
