"""Damaged JSON, YAML and text documents, and the functions that read them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from trials.mutations import Generator, Mutant, damage_bytes, damage_document, damage_lines
from trials.samples import make_bids, make_data, make_model, make_scans


class DamagedDocuments:
    """Mutants of documents: data sets, plans, splits, configurations, lists, logs and records of prediction.

    Args:
        folder: Where they are written.
        plan: A plan.
        config: A configuration.
    """

    def __init__(self, folder: Path, plan: Any, config: Any) -> None:
        self._folder = folder
        self._documents = self._whole_documents(plan.to_dict(), asdict(config))
        self._predicted = PredictedFolder(folder / "predicted")

    def make(self, rng: Generator) -> Mutant:
        """Damage the values or the bytes of a document."""
        if rng.random() < 0.12:
            note, path = self._predicted.damage(rng)
            return Mutant("records", note, path, self._predicted.predict_again)
        name, path, whole, read = self._documents[int(rng.integers(len(self._documents)))]
        if rng.random() < 0.65 and not isinstance(whole, bytes):
            text, note = damage_document(whole, rng)
            data = text.encode(errors="surrogatepass")
        else:
            content = whole if isinstance(whole, bytes) else json.dumps(whole, indent=1).encode()
            damage = damage_lines if isinstance(whole, bytes) and rng.random() < 0.5 else damage_bytes
            data, note = damage(content, rng)
        path.write_bytes(data)
        return Mutant(name, note, path, lambda: read(path))

    def _whole_documents(self, plan: Any, config: Any) -> list[tuple[str, Path, Any, Callable[[Path], Any]]]:
        """Return name, place, content and reader of every document."""
        from volseg.config.load import load_config
        from volseg.data.split_files import read_split_file
        from volseg.evaluation.sources import read_case_names
        from volseg.io.cases import list_images
        from volseg.io.datasets import read_dataset
        from volseg.planning.plan import Plan
        from volseg.training.run_log import RunLog

        data, scans = make_data(self._folder / "data", 2), make_scans(self._folder / "scans", 3)
        listing = "".join(f"scans/{path.name} # {number}\n" for number, path in enumerate(sorted(scans.iterdir())))
        dataset = json.loads((data / "dataset.json").read_text(encoding="utf-8"))
        rows = "".join(json.dumps({"step": step, "loss": 0.5, "elapsed_s": 1.5}) + "\n" for step in range(20))
        split = {"fold": 0, "train": ["a", "b"], "val": ["c"]}
        images = sorted(path.name for path in (data / "imagesTr").iterdir())
        table = "case,image,label,patient,fold\n" + "".join(
            f"case {number},data/imagesTr/{name},data/labelsTr/{name},p{number},{number}\n"
            for number, name in enumerate(images)
        )
        bids = make_bids(self._folder / "bids", data)
        segments = "index\tname\tabbreviation\n0\tBackground\tBG\n1\tLeft Kidney\tLK\n2\tSpleen\tSP\n"
        listed = {
            "training": [
                {"image": f"imagesTr/{name}", "label": f"labelsTr/{name}", "fold": n} for n, name in enumerate(images)
            ],
            "validation": [],
            "labels": {"0": "background", "1": "organ"},
            "modality": {"0": "CT"},
        }
        folds = [{"train": ["a", "b"], "val": ["c"]}, {"train": ["c"], "val": ["a", "b"]}]
        return [
            ("dataset.json", data / "dataset.json", dataset, lambda path: read_dataset(path.parent)),
            ("data list", data / "dataset.json", listed, lambda path: read_dataset(path.parent)),
            ("CSV of cases", self._folder / "cases.csv", table.encode(), read_dataset),
            ("BIDS dseg.tsv", bids, segments.encode(), lambda path: read_dataset(path.parents[2])),
            ("splits_final.json", self._folder / "splits_final.json", folds, read_split_file),
            ("plan.json", self._folder / "plan.json", plan, Plan.load),
            ("CSV of folds", self._folder / "folds.csv", b"case,fold\na,0\nb,1\nc,2\nd,0\n", read_split_file),
            ("splits.json", self._folder / "splits.json", split, read_case_names),
            ("splits.json of a run", self._folder / "splits.json", split, read_split_file),
            ("configuration", self._folder / "mutant.yaml", config, load_config),
            ("list of scans", self._folder / "list.txt", listing.encode(), list_images),
            ("metrics.jsonl", self._folder / "metrics.jsonl", rows.encode(), lambda path: RunLog(path.parent, 10)),
        ]


class PredictedFolder:
    """A folder of masks with the records of their prediction.

    Args:
        folder: An empty folder for both.
    """

    def __init__(self, folder: Path) -> None:
        import volseg

        self._scans, self._masks = make_scans(folder / "scans", 3), folder / "masks"
        self._predictor = volseg.load(make_model(folder / "model.safetensors"), device="cpu")
        self.predict_again()
        self._files = {path: path.read_bytes() for path in self._masks.rglob("*") if path.is_file()}

    def damage(self, rng: Generator) -> tuple[str, Path]:
        """Damage the bytes or the values of a record; the other files become what they were."""
        for path in self._masks.rglob("*"):
            if path.is_file() and path not in self._files:
                path.unlink()
        for path, data in self._files.items():
            path.write_bytes(data)
        records = sorted(path for path in self._files if path.suffix.startswith(".json"))
        path = records[int(rng.integers(len(records)))]
        lines = self._files[path].splitlines(keepends=True) if path.suffix == ".jsonl" else [self._files[path]]
        place = int(rng.integers(len(lines)))
        if rng.random() < 0.65:
            text, note = damage_document(json.loads(lines[place]), rng)
            lines[place] = text.encode(errors="surrogatepass") + b"\n"
        else:
            lines[place], note = damage_bytes(lines[place], rng)
        path.write_bytes(b"".join(lines))
        return f"{path.name}: {note}", path

    def predict_again(self) -> None:
        """Predict the folder, which skips what is recorded."""
        import volseg

        volseg.predict(self._predictor, self._scans, self._masks)
