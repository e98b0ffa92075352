"""Prediction of a file, a folder or a list of scans; a case that fails does not stop the others."""

from __future__ import annotations

import logging
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from volseg.errors import DataError, OutputError, VolsegError, counted
from volseg.geometry.volume import Volume
from volseg.inference.cohort.names import check_class_names, output_place
from volseg.inference.cohort.outputs import Outputs, output_sha256
from volseg.inference.cohort.pipeline import pipeline
from volseg.inference.cohort.records import (
    CaseRecord,
    Status,
    Summary,
    peak_device_mb,
    peak_rss_mb,
)
from volseg.inference.cohort.shard import Shard, shard_of
from volseg.inference.options import PredictOptions
from volseg.inference.predictor import Predictor, Segmentation
from volseg.io.atomic import remove_stale, scratch_folder
from volseg.io.checks import check_files
from volseg.io.content import file_sha256, scan_sha256
from volseg.io.datasets import Case, list_images
from volseg.io.locks import LOCK_NAME, folder_lock

logger = logging.getLogger(__name__)

_DEFAULTS = PredictOptions()


def predict_folder(
    predictor: Predictor,
    scans: str | Path | Sequence[Case],
    output: str | Path,
    *,
    options: PredictOptions = _DEFAULTS,
    mask_format: str | None = None,
    split_classes: bool = False,
    probabilities: bool = False,
    uncertainty: bool = False,
    shard: Shard | None = None,
    overwrite: bool = False,
    strict: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Summary:
    """Write a mask for each case on the scan's own grid, ``records.jsonl`` and ``summary.json``.

    While the network segments a scan, the next scan is read and the previous mask is written. A case whose files
    exist is skipped if its record shows the same model, input and options and its mask is unchanged; otherwise it
    fails, unless ``overwrite``. If only some of the requested files exist, or if the run that wrote them was killed,
    the case is predicted again. Files that volseg did not write, or that were changed since, are never replaced.

    Args:
        predictor: The model.
        scans: A scan, a folder of scans, a list file (see :func:`volseg.io.datasets.list_images`), or cases, whose
            ids become file names.
        output: Folder of the masks, created if missing; or the file of the mask, for one scan. Beside a file
            ``x.nii.gz``, records and summary are ``x.records.jsonl`` and ``x.summary.json``.
        options: Settings of the prediction.
        mask_format: A key of :data:`volseg.config.mask_formats.MASK_FORMATS`; ``None`` takes that of each scan, or that
            of the output file.
        split_classes: Write ``<case>/<class>.nii.gz``, one binary mask per class, instead of ``<case>.nii.gz``.
        probabilities: Also write ``<case>_probabilities.nii``.
        uncertainty: Also write ``<case>_uncertainty.nii.gz``.
        shard: ``(i, n)`` predicts part i of n, with about as many voxels as the others, for n parallel jobs.
        overwrite: Replace files that volseg wrote with other models, inputs or options.
        strict: A scan that is far from all training scans fails; otherwise this is a warning.
        progress: Called with the number of finished cases and the number of all cases.

    Returns:
        A record of each case.

    Raises:
        ConfigError: There is no such format, a file is given for several scans, classes or shards, or the models of an
            ensemble have different postprocessing and none is chosen.
        DataError: No scan was found, or two scans have the same name.
        OutputError: The output folder is not writable, holds the scans, or is held by another process; two cases would
            write the same file; or a class name is not a valid file name.
    """
    cases = list_images(scans, predictor.plan.num_channels) if isinstance(scans, str | Path) else scans
    one_file = len(cases) == 1 and not split_classes and shard is None
    folder, file_name = output_place(Path(output), mask_format, one_file=one_file)
    outputs = Outputs(
        folder=folder,
        mask_format=mask_format,
        file_name=file_name,
        split_classes=split_classes,
        probabilities=probabilities,
        uncertainty=uncertainty,
    )
    if split_classes:
        check_class_names(predictor.plan.labels)
    outputs.check(cases)
    cases = shard_of(cases, shard)
    # The limits of memory do not change a mask.
    changing: dict[str, object] = {"tta": options.tta, "skip_air": options.skip_air}
    if options.resample_channels:  # absent otherwise, as in the records of earlier versions
        changing["resample_channels"] = True
    postprocessing = predictor.postprocessing_of(options)
    if postprocessing != predictor.postprocessing:
        changing["postprocess"] = postprocessing.to_dict()
    if predictor.autocast is not None:
        changing["precision"] = "bf16"
    # in the order of the hashes, because the order of an ensemble does not change a mask
    models = sorted((file_sha256(file), file) for file in predictor.model_files)
    provenance = {"model_sha256": [sha256 for sha256, _ in models], "options": changing}
    with _locked_output(folder, shard, str(provenance), file_name) as staging:
        summary = Summary(
            folder,
            [file for _, file in models],
            provenance,
            shard,
            file_stem=outputs.file_stem,
            labels=predictor.plan.labels,
        )
        job = _Job(predictor, options, outputs, overwrite, strict, summary, staging)
        logger.info("predicting %s on %s", counted(len(cases), "scan"), predictor.device)
        try:
            with closing(pipeline([_CaseRun(case, job) for case in cases])) as finished_runs:
                for done, _ in enumerate(finished_runs, start=1):
                    if progress is not None:
                        progress(done, len(cases))
        finally:
            summary.write()
    return summary


@contextmanager
def _locked_output(output: Path, shard: Shard | None, run: str, file_name: str | None) -> Iterator[Path]:
    """Create the output folder, hold it, and yield an empty folder in it for files that wait for their mask.

    Args:
        output: The output folder.
        shard: Part of the cases that this process predicts.
        run: Text that is the same for all shards of one prediction.
        file_name: The only file that is written, so that other such files may be written to the folder meanwhile.

    Raises:
        OutputError: The folder cannot be written, or another process predicts into it.
    """
    try:
        output.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=output, prefix=".volseg_").close()  # fails before any scan is predicted
    except OSError as error:
        raise OutputError(
            "the output folder cannot be written",
            file=output,
            found=error.strerror or error,
            hint="choose another folder",
        ) from error
    with ExitStack() as stack:
        lock = partial(folder_lock, output, "volseg predict")
        shared_by = "single files" if file_name is not None else None
        part = file_name
        if shard is not None:
            shared_by, part = f"{shard[1]} shards of {run}", str(shard[0])
        stack.enter_context(lock(shared_by=shared_by))
        if part is not None:
            stack.enter_context(lock(name=f"{LOCK_NAME}-{part}"))
        remove_stale(output)
        name = f"staging-{shard[0]}-of-{shard[1]}" if shard is not None else "-".join(filter(None, ("staging", part)))
        yield stack.enter_context(scratch_folder(output / name))


@dataclass(frozen=True)
class _Job:
    """What all cases of a run share.

    Probabilities and uncertainty are written to ``staging`` and moved once their mask is written.
    """

    predictor: Predictor
    options: PredictOptions
    outputs: Outputs
    overwrite: bool
    strict: bool
    summary: Summary
    staging: Path


class _CaseRun:
    """One case in the pipeline.

    The volume and the segmentation are released by the stage that uses them, because several cases are in memory at
    the same time.
    """

    def __init__(self, case: Case, job: _Job) -> None:
        self._case = case
        self._job = job
        self._status: Status = "done"
        self._error: str | None = None
        self._warnings: Sequence[str] = ()
        self._input_sha256: str | None = None
        self._earlier_record: Mapping[str, Any] = {}
        self._outputs: dict[str, str | None] = {}
        self._seconds: dict[str, float] = {}
        self._peak_device_mb: float | None = None
        self._volume: Volume | None = None
        self._segmentation: Segmentation | None = None

    def read(self) -> None:
        """Read the scan, unless the case is finished."""
        with self._stage("read"):
            check_files(self._case.images, self._job.predictor.plan.channels)
            self._input_sha256 = scan_sha256(self._case.images)
            if self._is_finished(self._input_sha256):
                self._status = "skipped"
            else:
                self._job.outputs.check_series(self._case)
                volume = self._job.predictor.read(
                    self._case.images,
                    resample_channels=self._job.options.resample_channels,
                    tolerance_mm=self._case.grids.tolerance_mm,
                )
                self._job.outputs.check_grid(self._case, volume.grid)
                self._warnings = self._check_usual(volume)
                self._volume = volume

    def _check_usual(self, volume: Volume) -> list[str]:
        """Log in what a scan differs from all training scans.

        Raises:
            DataError: It does, and the run is strict.
        """
        texts = self._job.predictor.unusual(volume)
        if texts and self._job.strict:
            raise DataError(
                "the scan differs from the training scans",
                file=self._case.images[0],
                found="; ".join(texts),
                hint="export it again, or leave --strict out",
            )
        for text in texts:
            logger.warning("%s: %s", self._case.images[0], text)
        return texts

    def predict(self) -> None:
        """Segment the scan, if it was read."""
        volume, self._volume = self._volume, None
        if volume is None:
            return
        outputs, case = self._job.outputs, self._case
        probabilities, uncertainty = (
            path and self._job.staging / path.name
            for path in (outputs.probabilities_of(case), outputs.uncertainty_of(case))
        )
        with self._stage("segment"):
            self._segmentation = self._job.predictor.segment(
                volume, self._job.options, probabilities=probabilities, uncertainty=uncertainty
            )
            self._seconds |= {stage: round(spent, 4) for stage, spent in self._segmentation.seconds.items()}
        self._peak_device_mb = peak_device_mb(self._job.predictor.device)

    def finish(self) -> None:
        """Write the files and their record, in one stage: an interruption must not leave files without a record."""
        segmentation, self._segmentation = self._segmentation, None
        if segmentation is not None:
            with self._stage("write"):
                self._write(segmentation)
            if self._status == "failed":
                self._begin(self._job.outputs.existing(self._case))  # files that were not written are not ours
        self._job.summary.add(self._record(segmentation))
        if self._status == "done":
            logger.info("%s: predicted in %.3g s", self._case.id, sum(self._seconds.values()))

    def _write(self, segmentation: Segmentation) -> None:
        mask, *extras = self._job.outputs.all_of(self._case)
        self._begin([mask, *extras])
        self._job.outputs.write_mask(self._case, segmentation.mask, self._job.predictor.plan)
        for path in extras:
            (self._job.staging / path.name).replace(path)
        self._outputs |= {mask.name: output_sha256(mask)} | {path.name: None for path in extras}

    def _begin(self, paths: Sequence[Path]) -> None:
        self._job.summary.begin(self._case.id, self._input_sha256, [path.name for path in paths])

    def _record(self, segmentation: Segmentation | None) -> CaseRecord:
        """Return the case's record; a skipped case keeps the counts and removed components of its earlier record."""
        earlier = self._earlier_record if self._status == "skipped" else {}
        return CaseRecord(
            case=self._case.id,
            status=self._status,
            inputs=[str(path) for path in self._case.images],
            outputs={} if self._status == "failed" else self._outputs,
            input_sha256=self._input_sha256,
            error=self._error,
            warnings=self._warnings or earlier.get("warnings", ()),
            seconds=self._seconds,
            counts=segmentation.counts if segmentation is not None else earlier.get("counts", {}),
            removed=segmentation.removed if segmentation is not None else earlier.get("removed", ()),
            peak_rss_mb=peak_rss_mb(),
            peak_device_mb=self._peak_device_mb,
        )

    def _is_finished(self, scan_sha256: str) -> bool:
        """Return whether all requested files exist and are those that this run would write.

        Raises:
            OutputError: A file exists that another model, input or option produced, or that was changed.
        """
        outputs, summary, case = self._job.outputs, self._job.summary, self._case.id
        outputs.check_mask_path(self._case)
        existing = outputs.existing(self._case)
        if self._job.overwrite:
            self._check_recorded(existing)
            return False
        records = summary.current(case, scan_sha256)
        record = next((one for one in records if all(_matches(one, path) for path in existing)), None)
        if record is None and {path.name for path in existing} <= summary.unfinished(case, scan_sha256):
            return False
        if record is None:
            raise OutputError(
                "an existing file was not written for this scan by this model with these settings",
                file=existing[0],
                found=summary.differences(case, scan_sha256, existing[0].name, output_sha256(existing[0]))
                or "a file that volseg did not write, or that was changed since",
                hint="give --overwrite, or choose another folder",
            )
        self._earlier_record = record
        folder = self._job.outputs.folder
        self._outputs = {name: sha256 for name, sha256 in record["outputs"].items() if _matches(record, folder / name)}
        return len(existing) == len(outputs.all_of(self._case))

    def _check_recorded(self, existing: Sequence[Path]) -> None:
        """Check that files which are going to be replaced are those that volseg wrote.

        Raises:
            OutputError: A file has no record in this folder, or it was changed since.
        """
        for path in existing:
            if not self._job.summary.is_recorded(self._case.id, path.name, output_sha256(path)):
                raise OutputError(
                    "an existing file was not written by volseg, or was changed since; --overwrite does not replace it",
                    file=path,
                    hint="move or delete it, or choose another folder",
                )

    @contextmanager
    def _stage(self, name: str) -> Iterator[None]:
        """Time a stage and turn any error in it into the case's status ``failed``.

        Only in the main thread are errors that are no ``Exception`` (Ctrl-C, a signal) raised again: signals arrive
        there alone, so elsewhere such an error comes from a library and concerns this case only.
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
            # A segmentation brings the times of its own stages, so "segment" is recorded only when it fails.
            if name != "segment" or self._segmentation is None:
                self._seconds[name] = round(time.perf_counter() - start, 4)


def _matches(record: Mapping[str, Any], path: Path) -> bool:
    """Return whether a record lists this file, the file exists, and its hash (if one was recorded) is the same."""
    outputs = record.get("outputs", {})
    if path.name not in outputs or not path.exists():
        return False
    return outputs[path.name] is None or outputs[path.name] == output_sha256(path)
