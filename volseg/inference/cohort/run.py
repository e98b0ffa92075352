"""Predict a file, a folder or a list of scans: one bad case never stops the others."""

from __future__ import annotations

import logging
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from volseg.errors import OutputError, VolsegError
from volseg.geometry.volume import Volume
from volseg.inference.cohort.outputs import Outputs, check_class_names, output_sha256
from volseg.inference.cohort.pipeline import pipeline
from volseg.inference.cohort.records import CaseResult, Status, Summary, input_sha256, peak_device_mb, peak_rss_mb
from volseg.inference.cohort.shard import Shard
from volseg.inference.options import PredictOptions
from volseg.inference.predictor import Predictor, Segmentation
from volseg.io.datasets import Case, list_images

logger = logging.getLogger(__name__)

_DEFAULTS = PredictOptions()


def predict_folder(
    predictor: Predictor,
    scans: str | Path | Sequence[Case],
    output: str | Path,
    *,
    options: PredictOptions = _DEFAULTS,
    split_classes: bool = False,
    probabilities: bool = False,
    uncertainty: bool = False,
    shard: Shard | None = None,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Summary:
    """Write ``<case>.nii.gz`` on each scan's own grid, and ``summary.json``.

    The next scan is read, and the last mask written, while the network works. A case whose files exist is left as it
    is if its record shows the same model, input and options and its mask was not changed since; otherwise it fails,
    unless ``overwrite``. A file that is wanted now and was not then is made.

    Args:
        predictor: The model.
        scans: A scan, a folder of scans, a list file (see :func:`volseg.io.datasets.list_images`), or cases; the
            cases' ids become file names.
        output: Folder of the masks; made if absent.
        options: How the scans are predicted.
        split_classes: Write ``<case>/<class>.nii.gz``, one file (0 and 1) a class, instead of ``<case>.nii.gz``.
        probabilities: Write ``<case>_probabilities.npy`` too.
        uncertainty: Write ``<case>_uncertainty.nii.gz`` too.
        shard: ``(i, n)`` takes every n-th case from the i-th, for n jobs side by side.
        overwrite: Replace files of other models, inputs or options.
        progress: Called with the number of finished cases and of all cases.

    Returns:
        What became of each case.

    Raises:
        DataError: No scan was found, or two of them have the same name.
        OutputError: The output folder cannot be written, or classes cannot be file names.
    """
    cases = list_images(scans, predictor.plan.num_channels) if isinstance(scans, str | Path) else scans
    if split_classes:
        check_class_names(predictor.plan.labels)
    output = _prepare_output(Path(output))
    if shard is not None:
        cases = cases[shard[0] :: shard[1]]
    outputs = Outputs(folder=output, split_classes=split_classes, probabilities=probabilities, uncertainty=uncertainty)
    changing = {"tta": options.tta, "skip_air": options.skip_air}
    summary = Summary(output, predictor.model_files, changing, shard)
    with tempfile.TemporaryDirectory(dir=output, prefix=".volseg_") as staging:
        job = _Job(predictor, options, outputs, overwrite, summary, Path(staging))
        with closing(pipeline([_CaseRun(case, job) for case in cases])) as runs:
            for done, _ in enumerate(runs, start=1):
                if progress is not None:
                    progress(done, len(cases))
    return summary


def _prepare_output(output: Path) -> Path:
    """Make the folder and see that files can be written there, before any work is done."""
    try:
        output.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=output, prefix=".volseg_").close()
    except OSError as error:
        raise OutputError(
            "the output folder cannot be written", file=output, found=error, hint="choose another folder"
        ) from error
    return output


@dataclass(frozen=True)
class _Job:
    """What all cases of a run share. What goes beside a mask waits in ``staging`` until the mask is there."""

    predictor: Predictor
    options: PredictOptions
    outputs: Outputs
    overwrite: bool
    summary: Summary
    staging: Path


class _CaseRun:
    """One case on its way through the stages; what a stage needs is kept only until it is used."""

    def __init__(self, case: Case, job: _Job) -> None:
        self._case = case
        self._job = job
        self._status: Status | None = None
        self._error: str | None = None
        self._hash: str | None = None
        self._record: Mapping[str, Any] = {}
        self._outputs: dict[str, str | None] = {}
        self._seconds: dict[str, float] = {}
        self._peak_device_mb: float | None = None
        self._volume: Volume | None = None
        self._segmentation: Segmentation | None = None

    def read(self) -> None:
        """First stage: look whether there is anything to do, and read the scan."""
        with self._stage("read"):
            self._hash = input_sha256(self._case.images)
            if self._is_finished(self._hash):
                self._status = "skipped"
            else:
                self._volume = self._job.predictor.read(self._case.images)

    def predict(self) -> None:
        """Second stage: from the scan to its mask."""
        volume, self._volume = self._volume, None
        if volume is None:
            return
        outputs, name = self._job.outputs, self._case.id
        probabilities, uncertainty = (
            path and self._job.staging / path.name
            for path in (outputs.probabilities_of(name), outputs.uncertainty_of(name))
        )
        with self._stage("segment"):
            self._segmentation = self._job.predictor.segment(
                volume, self._job.options, probabilities=probabilities, uncertainty=uncertainty
            )
            self._seconds |= {stage: round(spent, 4) for stage, spent in self._segmentation.seconds.items()}
        self._peak_device_mb = peak_device_mb(self._job.predictor.device)

    def finish(self) -> None:
        """Last stage: the files, and the record of them, in one go, so that an interruption cannot part them."""
        made, self._segmentation = self._segmentation, None
        if made is not None:
            with self._stage("write"):
                self._job.outputs.write_mask(self._case, made.mask, self._job.predictor.plan.labels)
                mask, *extras = self._job.outputs.all_of(self._case.id)
                for path in extras:
                    (self._job.staging / path.name).replace(path)
                self._outputs |= {mask.name: output_sha256(mask)} | {path.name: None for path in extras}
        known = self._record if self._status == "skipped" else {}
        result = CaseResult(
            case=self._case.id,
            status=self._status or "done",
            inputs=[str(path) for path in self._case.images],
            outputs={} if self._status == "failed" else self._outputs,
            input_sha256=self._hash,
            error=self._error,
            seconds=self._seconds,
            counts=made.counts if made is not None else known.get("counts", {}),
            removed=made.removed if made is not None else known.get("removed", ()),
            peak_rss_mb=peak_rss_mb(),
            peak_device_mb=self._peak_device_mb,
        )
        self._job.summary.add(result)

    def _is_finished(self, input_hash: str) -> bool:
        """Whether all that is wanted is there and is what this run would write.

        Raises:
            OutputError: Something is there that is not.
        """
        self._job.outputs.check(self._case)
        if self._job.overwrite:
            return False
        found = self._job.outputs.existing(self._case.id)
        records = self._job.summary.current(self._case.id, input_hash)
        record = next((one for one in records if all(_vouches(one, path) for path in found)), None)
        if record is None and not found:
            return False
        if record is None:
            raise OutputError(
                "a file exists that was not made from this scan by this model with these settings",
                file=found[0],
                hint="give --overwrite, or choose another folder",
            )
        self._record = record
        folder = self._job.outputs.folder
        self._outputs = {name: value for name, value in record["outputs"].items() if _vouches(record, folder / name)}
        return len(found) == len(self._job.outputs.all_of(self._case.id))

    @contextmanager
    def _stage(self, name: str) -> Iterator[None]:
        """Time a stage; whatever goes wrong in it ends this case and no other.

        Signals arrive in the main thread alone: only there an interruption is passed on.
        """
        start = time.perf_counter()
        try:
            yield
        except BaseException as error:
            if not isinstance(error, Exception) and threading.current_thread() is threading.main_thread():
                raise
            self._status = "failed"
            self._error = str(error) if isinstance(error, VolsegError) else f"{type(error).__name__}: {error}"
            logger.error("%s failed: %s", self._case.id, self._error)
            logger.debug("%s failed in stage %s", self._case.id, name, exc_info=error)
        finally:
            if name != "segment" or self._segmentation is None:
                self._seconds[name] = round(time.perf_counter() - start, 4)


def _vouches(record: Mapping[str, Any], path: Path) -> bool:
    """Whether a record says that its run wrote this file, and the file is unchanged as far as hashes were taken."""
    outputs = record.get("outputs", {})
    if path.name not in outputs or not path.exists():
        return False
    return outputs[path.name] is None or outputs[path.name] == output_sha256(path)
