"""Predict a file or a folder of scans: one bad case never stops the others."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from volseg.errors import OutputError, VolsegError
from volseg.geometry.volume import Mask, Volume
from volseg.inference.predictor import Predictor
from volseg.inference.summary import CaseResult, Status, Summary, input_sha256, peak_rss_mb
from volseg.io.datasets import Case, list_images
from volseg.io.model_file import file_sha256
from volseg.io.volumes import write_mask

logger = logging.getLogger(__name__)

Shard = tuple[int, int]
"""(i, n): every n-th case, from the i-th."""


def predict_folder(
    predictor: Predictor,
    scans: str | Path | Sequence[Case],
    output: str | Path,
    *,
    tta: bool = False,
    shard: Shard | None = None,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Summary:
    """Write ``<case>.nii.gz`` on each scan's own grid, and ``summary.json``.

    The next scan is read, and the last mask written, while the network works. A case whose mask exists is left as it
    is if its record shows the same model, input and options and it was not changed since; otherwise the case fails,
    unless ``overwrite``.

    Args:
        predictor: The model.
        scans: A scan, a folder of scans, or cases; the cases' ids become file names.
        output: Folder of the masks; made if absent.
        tta: Average over mirrored copies.
        shard: ``(i, n)`` takes every n-th case from the i-th, for n jobs side by side.
        overwrite: Replace masks of other models, inputs or options.
        progress: Called with the number of finished cases and of all cases.

    Returns:
        What became of each case.

    Raises:
        DataError: No scan was found, or two of them have the same name.
        OutputError: The output folder cannot be written.
    """
    cases = list_images(scans, predictor.plan.num_channels) if isinstance(scans, str | Path) else scans
    output = _prepare_output(Path(output))
    if shard is not None:
        cases = cases[shard[0] :: shard[1]]
    summary = Summary(output, predictor.model_file, {"tta": tta}, shard)
    job = _Job(predictor, output, tta, overwrite, summary)
    for done, _ in enumerate(_pipeline([_CaseRun(case, job) for case in cases]), start=1):
        if progress is not None:
            progress(done, len(cases))
    return summary


def _prepare_output(output: Path) -> Path:
    """Make the folder and see that files can be written there, before any work is done."""
    probe = output / ".volseg_write_test"
    try:
        output.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise OutputError(
            "the output folder cannot be written", file=output, found=error, mend="choose another folder"
        ) from error
    return output


@dataclass(frozen=True)
class _Job:
    """What all cases of a run share."""

    predictor: Predictor
    output: Path
    tta: bool
    overwrite: bool
    summary: Summary


class _CaseRun:
    """One case on its way through the stages; what a stage needs is kept only until it is used."""

    def __init__(self, case: Case, job: _Job) -> None:
        self._case = case
        self._job = job
        self._output = job.output / f"{case.id}.nii.gz"
        self._status: Status | None = None
        self._error: str | None = None
        self._hash: str | None = None
        self._seconds: dict[str, float] = {}
        self._volume: Volume | None = None
        self._mask: Mask | None = None

    def read(self) -> _CaseRun:
        """First stage: look whether there is anything to do, and read the scan."""
        with self._stage("read"):
            self._hash = input_sha256(self._case.images)
            if self._output.exists() and self._keep_output(self._hash):
                self._status = "skipped"
            else:
                self._volume = self._job.predictor.read(self._case.images)
        return self

    def predict(self) -> None:
        """Second and third stage: the network, and the way back to the scan's grid."""
        volume, self._volume = self._volume, None
        if volume is None:
            return
        with self._stage("predict"):
            logits, trace = self._job.predictor.logits(volume, tta=self._job.tta)
        if self._status is None:
            del volume
            with self._stage("restore"):
                self._mask = self._job.predictor.restore(logits, trace)

    def finish(self) -> _CaseRun:
        """Last stage: the file, and the record of it, in one go, so that an interruption cannot part them."""
        mask, self._mask = self._mask, None
        if mask is not None:
            with self._stage("write"):
                write_mask(self._output, mask, source=self._case.images[0])
        status = self._status or "done"
        result = CaseResult(
            case=self._case.id,
            status=status,
            inputs=[str(path) for path in self._case.images],
            output=self._output.name,
            input_sha256=self._hash,
            output_sha256=None if status == "failed" else file_sha256(self._output),
            error=self._error,
            seconds=self._seconds,
            peak_rss_mb=peak_rss_mb(),
        )
        self._job.summary.add(result)
        return self

    def _keep_output(self, input_hash: str) -> bool:
        """Whether the mask that is there is the one this run would write."""
        if self._output.resolve() in {path.resolve() for path in self._case.images}:
            raise OutputError("the mask would replace its own scan", file=self._output, mend="choose another folder")
        if self._job.overwrite:
            return False
        if not self._job.summary.is_current(self._case.id, input_hash, file_sha256(self._output)):
            raise OutputError(
                "a mask exists that was not made from this scan by this model with these settings",
                file=self._output,
                mend="give --overwrite, or choose another folder",
            )
        return True

    @contextmanager
    def _stage(self, name: str) -> Iterator[None]:
        """Time a stage; whatever goes wrong in it ends this case and no other."""
        start = time.perf_counter()
        try:
            yield
        except Exception as error:
            self._status = "failed"
            self._error = str(error) if isinstance(error, VolsegError) else f"{type(error).__name__}: {error}"
            logger.error("%s failed: %s", self._case.id, self._error)
            logger.debug("%s failed in stage %s", self._case.id, name, exc_info=error)
        finally:
            self._seconds[name] = round(time.perf_counter() - start, 4)


def _pipeline(runs: Iterable[_CaseRun]) -> Iterator[_CaseRun]:
    """Read one case ahead and write one behind; yields each run when it is finished, in their order."""
    with ThreadPoolExecutor(1, "read") as reader, ThreadPoolExecutor(1, "write") as writer:
        writing: Future[_CaseRun] | None = None
        for run in _read_ahead(reader, runs):
            run.predict()
            if writing is not None:
                yield writing.result()
            writing = writer.submit(run.finish)
        if writing is not None:
            yield writing.result()


def _read_ahead(reader: ThreadPoolExecutor, runs: Iterable[_CaseRun]) -> Iterator[_CaseRun]:
    reading: Future[_CaseRun] | None = None
    for run in runs:
        upcoming = reader.submit(run.read)
        if reading is not None:
            yield reading.result()
        reading = upcoming
    if reading is not None:
        yield reading.result()
