"""``summary.json``: a record of each case, rewritten after every case so that an interrupted run loses none."""

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
class CaseRecord:
    """The outcome of one case.

    Attributes:
        case: Id of the case.
        status: ``done``; ``skipped``: the same files existed already; ``failed``: see ``error``.
        inputs: The scan's files.
        outputs: Name -> hash of each file or folder written for this scan by this model with these options. Large
            files (probabilities, uncertainty) have ``None`` instead of a hash.
        input_sha256: Hash over the scan's files, if they could be read.
        error: The message of the error that made the case fail.
        seconds: Wall time of each stage: read, prepare, network, restore, postprocess, write. A case that fails between
            prepare and postprocess has one time, ``segment``, for these.
        counts: Counts of the network's work, for example ``encodings_per_slice``.
        removed: Changes by postprocessing: label, step, components, voxels, ml.
        peak_rss_mb: Peak memory of the process until the case was finished, in 10^6 bytes.
        peak_device_mb: Peak memory on the GPU while the case was segmented, in 10^6 bytes.
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
    """The records of a run, stored on disk; records of earlier runs stay in the file until their masks are replaced.

    Args:
        folder: Folder of the masks.
        model_files: The model's files. A network in memory has none, and its masks never count as current.
        options: Settings that change a mask.
        shard: ``(i, n)`` of a run that predicts every n-th case; each shard has its own summary.

    Attributes:
        path: Path of the summary.
        results: Records of this run, in the order of the cases.

    Raises:
        OutputError: The summary cannot be written.
    """

    def __init__(
        self, folder: Path, model_files: Sequence[Path], options: Mapping[str, Any], shard: tuple[int, int] | None
    ) -> None:
        self.path = folder / ("summary.json" if shard is None else f"summary_{shard[0]}_of_{shard[1]}.json")
        self.results: list[CaseRecord] = []
        self._header = {"format": FORMAT, "volseg": __version__, "model_files": [str(file) for file in model_files]}
        hashes = sorted(file_sha256(file) for file in model_files)  # sorted: the order of an ensemble does not matter
        self._provenance = {"model_sha256": hashes, "options": dict(options)}
        others = folder.glob("summary_*_of_*.json")
        self._earlier_records = {path: _read_records(path) for path in {folder / "summary.json", self.path, *others}}
        self._write()

    def current(self, case: str, input_sha256: str) -> list[dict[str, Any]]:
        """Return the records of earlier runs, of any shard, with this scan and the same model and options."""
        expected = {**self._provenance, "input_sha256": input_sha256}
        records = [records[case] for records in self._earlier_records.values() if case in records]
        matching = [record for record in records if all(record.get(key) == value for key, value in expected.items())]
        return matching if self._provenance["model_sha256"] else []

    def add(self, record: CaseRecord) -> None:
        """Add a record and write the summary.

        Raises:
            OutputError: The summary cannot be written.
        """
        self.results.append(record)
        try:
            self._write()
        except OutputError as error:
            raise OutputError(f"{record.case} cannot be recorded", file=self.path, found=error.problem) from error

    def count(self, status: Status) -> int:
        """Return the number of this run's cases with a status."""
        return sum(record.status == status for record in self.results)

    def _write(self) -> None:
        earlier = self._earlier_records[self.path]
        cases = {record.case: asdict(record) | self._provenance for record in self.results}
        replaced = {name for name, record in cases.items() if record["status"] != "failed"}
        document = {
            **self._header,
            **self._provenance,
            "counts": {status: self.count(status) for status in get_args(Status)},
            "cases": cases,
            "earlier": {name: record for name, record in earlier.items() if name not in replaced},
        }
        with atomic_file(self.path) as file:
            file.write((json.dumps(document, indent=1, ensure_ascii=False) + "\n").encode())


def input_sha256(files: Sequence[Path]) -> str:
    """Return one hash over the contents of a scan's files, in their order; files of a folder are sorted by name."""
    digest = hashlib.sha256()
    for path in files:
        for file in sorted(entry for entry in path.rglob("*") if entry.is_file()) if path.is_dir() else [path]:
            digest.update(file_sha256(file).encode())
    return digest.hexdigest()


def peak_rss_mb() -> float | None:
    """Return the peak resident memory of this process, in 10^6 bytes; ``None`` where the system does not report it."""
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024) / 1e6


def peak_device_mb(device: torch.device) -> float | None:
    """Return the peak memory on a GPU since the last call, in 10^6 bytes; ``None`` on another device."""
    if device.type != "cuda":
        return None
    import torch

    peak = torch.cuda.max_memory_allocated(device) / 1e6
    torch.cuda.reset_peak_memory_stats(device)
    return peak


def _read_records(path: Path) -> dict[str, dict[str, Any]]:
    """Read the records of written masks. A damaged file counts as empty, so that no case is skipped by mistake."""
    if not path.exists():
        return {}
    try:
        document = read_json(path, "summary", DataError)
        records = {**document["earlier"], **{k: v for k, v in document["cases"].items() if v["status"] != "failed"}}
        return {name: dict(record) for name, record in records.items()}
    except (DataError, KeyError, TypeError, AttributeError) as error:
        logger.warning("%s cannot be read as a summary and is ignored (%s)", path, error)
        return {}
