"""``summary.json``: what became of each case, written anew after each one so that an interrupted run loses nothing."""

from __future__ import annotations

import hashlib
import json
import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from volseg.io.atomic import atomic_file
from volseg.io.model_file import file_sha256
from volseg.version import __version__

logger = logging.getLogger(__name__)

FORMAT = 1
Status = Literal["done", "skipped", "failed"]


@dataclass(frozen=True, kw_only=True)
class CaseResult:
    """What became of one case.

    Attributes:
        case: Its name.
        status: ``done``; ``skipped``: the same mask was there already; ``failed``: see ``error``.
        inputs: The scan's files.
        output: The mask's file name.
        input_sha256: Hash over the scan's files, if they could be read.
        output_sha256: Hash of the mask's file, if there is one.
        error: What went wrong.
        seconds: Wall time of each stage: read, predict, restore, write.
        peak_rss_mb: Highest memory of the process up to then, in 10^6 bytes.
    """

    case: str
    status: Status
    inputs: Sequence[str]
    output: str
    input_sha256: str | None = None
    output_sha256: str | None = None
    error: str | None = None
    seconds: Mapping[str, float] = field(default_factory=dict)
    peak_rss_mb: float | None = None


class Summary:
    """The results of a run, kept on disk; records of earlier runs stay in the file until their masks are replaced.

    Args:
        folder: Folder of the masks.
        model_file: The model's file; ``None`` for a network in memory, whose masks are never taken for current.
        options: Settings that change a mask.
        shard: ``(i, n)`` of a run that takes every n-th case; each shard has a summary of its own.

    Attributes:
        path: The file.
        results: Results of this run, in the order of the cases.

    Raises:
        OutputError: The file cannot be written.
    """

    def __init__(
        self, folder: Path, model_file: Path | None, options: Mapping[str, Any], shard: tuple[int, int] | None
    ) -> None:
        self.path = folder / ("summary.json" if shard is None else f"summary_{shard[0]}_of_{shard[1]}.json")
        self.results: list[CaseResult] = []
        self._header = {"format": FORMAT, "volseg": __version__, "model_file": model_file and str(model_file)}
        self._how = {"model_sha256": model_file and file_sha256(model_file), "options": dict(options)}
        others = folder.glob("summary_*_of_*.json")
        self._known = {path: _read_records(path) for path in {folder / "summary.json", self.path, *others}}
        self._write()

    def is_current(self, case: str, input_sha256: str, output_sha256: str) -> bool:
        """Whether an earlier run, of any shard, made this very mask from this scan with the same model and options."""
        wanted = {**self._how, "input_sha256": input_sha256, "output_sha256": output_sha256}
        records = [records[case] for records in self._known.values() if case in records]
        same = any(all(record.get(key) == value for key, value in wanted.items()) for record in records)
        return same and self._how["model_sha256"] is not None

    def add(self, result: CaseResult) -> None:
        """Take in a result and write the file.

        Raises:
            OutputError: The file cannot be written.
        """
        self.results.append(result)
        self._write()

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
    """One hash over the content of a scan's files, in their order."""
    digest = hashlib.sha256()
    for file in files:
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


def _read_records(path: Path) -> dict[str, dict[str, Any]]:
    """Records of masks that were written; a damaged file counts as none, so that nothing is skipped by mistake."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        records = {**document["earlier"], **{k: v for k, v in document["cases"].items() if v["status"] != "failed"}}
        return {name: dict(record) for name, record in records.items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        logger.warning("%s cannot be read as a summary and is ignored (%s)", path, error)
        return {}
