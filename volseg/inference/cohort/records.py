"""Records of a prediction folder: a line per case in ``records.jsonl``, written at once, and ``summary.json``."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from volseg.errors import OutputError
from volseg.inference.cohort.history import WRITING, append_line, read_history, repair
from volseg.io.atomic import atomic_file, free_name
from volseg.io.paths import exists, is_file
from volseg.version import __version__

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

FORMAT = 3
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
        warnings: In what the scan differs from all training scans.
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
    warnings: Sequence[str] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)
    counts: Mapping[str, float] = field(default_factory=dict)
    removed: Sequence[Mapping[str, Any]] = ()
    peak_rss_mb: float | None = None
    peak_device_mb: float | None = None


class Summary:
    """The records of a run, stored on disk as they come; records of earlier runs stay in the file.

    Args:
        folder: Folder of the masks.
        model_files: The model's files.
        provenance: What the masks depend on beside their scans: ``model_sha256``, in the order of the files, and
            ``options``. A network in memory has no file, and its masks never count as current.
        shard: ``(i, n)`` of a run that predicts every n-th case; each shard has its own files.
        file_stem: Name of the only mask without its ending, where one file is written instead of a folder.
        labels: Class name -> value in the masks.

    Attributes:
        path: Path of the summary.
        results: Records of this run, in the order of the cases.

    Raises:
        OutputError: A file cannot be written.
    """

    def __init__(
        self,
        folder: Path,
        model_files: Sequence[Path],
        provenance: Mapping[str, Any],
        shard: tuple[int, int] | None,
        *,
        file_stem: str | None = None,
        labels: Mapping[str, int] | None = None,
    ) -> None:
        prefix = "" if file_stem is None else f"{file_stem}."
        suffix = "" if shard is None else f"_{shard[0]}_of_{shard[1]}"
        self.path = folder / f"{prefix}summary{suffix}.json"
        self.results: list[CaseRecord] = []
        self._records_path = folder / f"{prefix}records{suffix}.jsonl"
        self._labels = {"labels": dict(labels or {})}
        files = {"model_files": [str(file) for file in model_files]}
        self._header = {"format": FORMAT, "volseg": __version__, **files, **self._labels}
        self._provenance = dict(provenance)
        others = (*folder.glob("records_*_of_*.jsonl"), *folder.glob("*.records.jsonl"))
        paths = sorted({folder / "records.jsonl", self._records_path, *others})
        for path in (self.path, self._records_path):
            if exists(path) and not is_file(path):
                raise OutputError("this is not a regular file", file=path, hint="remove it, or choose another folder")
        repair(self._records_path)
        self._histories = {path: read_history(path) for path in paths}

    def current(self, case: str, input_sha256: str) -> list[dict[str, Any]]:
        """Return the records of earlier runs, of any shard, with this scan and the same model and options."""
        finished = (history.finished.get(case) for history in self._histories.values())
        return [record for record in finished if record is not None and self._is_current(record, input_sha256)]

    def differences(self, case: str, input_sha256: str, name: str, sha256: str) -> str | None:
        """Return in what an existing output differs from what this run would write; ``None`` if it is not recorded.

        Args:
            case: Id of the case.
            input_sha256: Hash of its scan.
            name: Name of the output.
            sha256: Hash of the output.
        """
        records = (history.finished.get(case, {}) for history in self._histories.values())
        record = next((one for one in records if one.get("outputs", {}).get(name) == sha256), None)
        if record is None:
            return None
        then, now = ({**one.get("options", {})} for one in (record, self._provenance))
        parts = [
            f"{key} was {_setting(then.get(key))}, is {_setting(now.get(key))}"
            for key in sorted(then.keys() | now.keys())
            if then.get(key) != now.get(key)
        ]
        hashes = (record.get("model_sha256"), self._provenance["model_sha256"])
        if hashes[0] != hashes[1]:
            before, after = (", ".join(one[:12] for one in part or ()) or "unknown" for part in hashes)
            parts.insert(0, f"the model was one with SHA-256 {before}, is {after}")
        if record.get("input_sha256") != input_sha256:
            parts.insert(0, f"the scan had SHA-256 {str(record.get('input_sha256'))[:12]}, has {input_sha256[:12]}")
        return "; ".join(parts) or "a network that is not from a file"

    def unfinished(self, case: str, input_sha256: str) -> set[str]:
        """Return the names of the files that a run like this one was writing when it was killed."""
        begun = (history.unfinished.get(case) for history in self._histories.values())
        return {
            name
            for record in begun
            if record is not None and self._is_current(record, input_sha256)
            for name in record["outputs"]
        }

    def is_recorded(self, case: str, name: str, sha256: str) -> bool:
        """Return whether volseg wrote an output of a case with this content, in any run with any model."""
        return any(history.has_output(case, name, sha256) for history in self._histories.values())

    def begin(self, case: str, input_sha256: str | None, outputs: Sequence[str]) -> None:
        """Record the names of the files that are going to be written.

        Raises:
            OutputError: The record cannot be written.
        """
        line = {"case": case, "status": WRITING, "input_sha256": input_sha256, "outputs": dict.fromkeys(outputs)}
        self._append(case, line | self._provenance)

    def add(self, record: CaseRecord) -> None:
        """Add the record of a case; that of a skipped case stands in the file already.

        Raises:
            OutputError: The record cannot be written.
        """
        self.results.append(record)
        if record.status != "skipped":
            self._append(record.case, asdict(record) | self._provenance | self._labels)

    def count(self, status: Status) -> int:
        """Return the number of this run's cases with a status."""
        return sum(record.status == status for record in self.results)

    def write(self) -> None:
        """Write ``summary.json``: the cases of this run, and those of earlier runs in this folder.

        A file of this name that is not a summary of volseg is kept under another name.

        Raises:
            OutputError: The summary cannot be written.
        """
        cases = {record.case: asdict(record) | self._provenance for record in self.results}
        replaced = {name for name, record in cases.items() if record["status"] != "failed"}
        earlier = self._histories[self._records_path].finished
        document = {
            **self._header,
            **self._provenance,
            "counts": {status: self.count(status) for status in get_args(Status)},
            "cases": cases,
            "earlier": {name: record for name, record in earlier.items() if name not in replaced},
        }
        if self.path.exists() and not _is_summary(self.path):
            kept = self.path.rename(free_name(self.path))
            logger.warning("%s was not written by volseg predict; it is kept as %s", self.path, kept.name)
        with atomic_file(self.path) as file:
            file.write(_json(document, indent=1))

    def _is_current(self, record: Mapping[str, Any], input_sha256: str) -> bool:
        expected = {**self._provenance, "input_sha256": input_sha256}
        return bool(expected["model_sha256"]) and all(record.get(key) == value for key, value in expected.items())

    def _append(self, case: str, line: Mapping[str, Any]) -> None:
        try:
            append_line(self._records_path, _json(line))
        except OSError as error:
            raise OutputError(
                f"{case} cannot be recorded", file=self._records_path, found=error.strerror or error
            ) from error


def _setting(value: object) -> str:
    """Return an option as text; those that are off may be absent."""
    return ("on" if value else "off") if isinstance(value, bool | None) else str(value)


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


def _is_summary(path: Path) -> bool:
    """Return whether a file is a summary of predictions, of this or an earlier version."""
    try:
        return {"volseg", "cases", "earlier"} <= set(json.loads(path.read_bytes()))
    except (OSError, ValueError, TypeError, RecursionError):
        return False


def _json(value: Mapping[str, Any], indent: int | None = None) -> bytes:
    """Return JSON with a final newline; a file name that is not UTF-8 is escaped."""
    return (json.dumps(value, indent=indent, ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace")
