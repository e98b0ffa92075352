"""``summary.json``: what became of each case, written anew after each one so that an interrupted run loses nothing."""

from __future__ import annotations

import hashlib
import json
import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from volseg.errors import DataError, OutputError
from volseg.io.atomic import atomic_file
from volseg.io.json_files import read_json
from volseg.io.model_file import file_sha256
from volseg.version import __version__

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

FORMAT = 2
Status = Literal["done", "skipped", "failed"]


@dataclass(frozen=True, kw_only=True)
class CaseResult:
    """What became of one case.

    Attributes:
        case: Its name.
        status: ``done``; ``skipped``: the same files were there already; ``failed``: see ``error``.
        inputs: The scan's files.
        outputs: Name of each file or folder that was made of this scan by this model with these options, and the hash
            of a mask; what is large (probabilities, uncertainty) is not hashed.
        input_sha256: Hash over the scan's files, if they could be read.
        error: What went wrong.
        seconds: Wall time of each stage: read, prepare, network, restore, postprocess, write; a case that fails in the
            second to fifth has them as ``segment``.
        counts: Of the network's work, for example ``encodings_per_slice``.
        removed: What postprocessing changed: label, step, components, voxels, ml.
        peak_rss_mb: Highest memory of the process up to then, in 10^6 bytes.
        peak_device_mb: Highest memory on the GPU while the case was segmented, in 10^6 bytes.
    """

    case: str
    status: Status
    inputs: Sequence[str]
    outputs: Mapping[str, str | None] = field(default_factory=dict)
    input_sha256: str | None = None
    error: str | None = None
    seconds: Mapping[str, float] = field(default_factory=dict)
    counts: Mapping[str, float] = field(default_factory=dict)
    removed: Sequence[Mapping[str, Any]] = ()
    peak_rss_mb: float | None = None
    peak_device_mb: float | None = None


class Summary:
    """The results of a run, kept on disk; records of earlier runs stay in the file until their masks are replaced.

    Args:
        folder: Folder of the masks.
        model_files: The model's files; none for a network in memory, whose masks are never taken for current.
        options: Settings that change a mask.
        shard: ``(i, n)`` of a run that takes every n-th case; each shard has a summary of its own.

    Attributes:
        path: The file.
        results: Results of this run, in the order of the cases.

    Raises:
        OutputError: The file cannot be written.
    """

    def __init__(
        self, folder: Path, model_files: Sequence[Path], options: Mapping[str, Any], shard: tuple[int, int] | None
    ) -> None:
        self.path = folder / ("summary.json" if shard is None else f"summary_{shard[0]}_of_{shard[1]}.json")
        self.results: list[CaseResult] = []
        self._header = {"format": FORMAT, "volseg": __version__, "model_files": [str(file) for file in model_files]}
        hashes = sorted(file_sha256(file) for file in model_files)  # the order of an ensemble does not matter
        self._how = {"model_sha256": hashes, "options": dict(options)}
        others = folder.glob("summary_*_of_*.json")
        self._known = {path: _read_records(path) for path in {folder / "summary.json", self.path, *others}}
        self._write()

    def current(self, case: str, input_sha256: str) -> list[dict[str, Any]]:
        """Records of earlier runs, of any shard, that predicted this scan with the same model and options."""
        wanted = {**self._how, "input_sha256": input_sha256}
        records = [records[case] for records in self._known.values() if case in records]
        same = [record for record in records if all(record.get(key) == value for key, value in wanted.items())]
        return same if self._how["model_sha256"] else []

    def add(self, result: CaseResult) -> None:
        """Take in a result and write the file.

        Raises:
            OutputError: The file cannot be written.
        """
        self.results.append(result)
        try:
            self._write()
        except OutputError as error:
            raise OutputError(f"{result.case} cannot be recorded", file=self.path, found=error.problem) from error

    def count(self, status: Status) -> int:
        """Number of this run's cases with a status."""
        return sum(result.status == status for result in self.results)

    def _write(self) -> None:
        cases = {result.case: asdict(result) | self._how for result in self.results}
        kept = {name for name, record in cases.items() if record["status"] != "failed"}
        document = {
            **self._header,
            **self._how,
            "counts": {status: self.count(status) for status in get_args(Status)},
            "cases": cases,
            "earlier": {name: record for name, record in self._known[self.path].items() if name not in kept},
        }
        with atomic_file(self.path) as file:
            file.write((json.dumps(document, indent=1, ensure_ascii=False) + "\n").encode())


def input_sha256(files: Sequence[Path]) -> str:
    """One hash over the content of a scan's files, in their order; of a DICOM folder, its files by name."""
    digest = hashlib.sha256()
    for path in files:
        for file in sorted(entry for entry in path.rglob("*") if entry.is_file()) if path.is_dir() else [path]:
            digest.update(file_sha256(file).encode())
    return digest.hexdigest()


def peak_rss_mb() -> float | None:
    """Highest resident memory of this process so far, in 10^6 bytes; ``None`` where the system does not tell."""
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024) / 1e6


def peak_device_mb(device: torch.device) -> float | None:
    """Highest memory on a GPU since the last call, in 10^6 bytes; ``None`` for another device."""
    if device.type != "cuda":
        return None
    import torch

    peak = torch.cuda.max_memory_allocated(device) / 1e6
    torch.cuda.reset_peak_memory_stats(device)
    return peak


def _read_records(path: Path) -> dict[str, dict[str, Any]]:
    """Records of masks that were written; a damaged file counts as none, so that nothing is skipped by mistake."""
    if not path.exists():
        return {}
    try:
        document = read_json(path, "summary", DataError)
        records = {**document["earlier"], **{k: v for k, v in document["cases"].items() if v["status"] != "failed"}}
        return {name: dict(record) for name, record in records.items()}
    except (DataError, KeyError, TypeError, AttributeError) as error:
        logger.warning("%s cannot be read as a summary and is ignored (%s)", path, error)
        return {}
