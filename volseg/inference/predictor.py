"""``Predictor``: one or several trained networks with their plans, which segment scans."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from volseg.config.schema import PRECISIONS
from volseg.device import choose_device, full_float32, prediction_dtype
from volseg.errors import ConfigError, DataError
from volseg.geometry.grid import Grid
from volseg.geometry.volume import Mask, Volume
from volseg.inference.ensemble import (
    Network,
    check_ensemble,
    check_folds,
    common_postprocessing,
    group_networks,
    read_network,
)
from volseg.inference.maps import probability_file, uncertainty_file
from volseg.inference.options import PredictOptions
from volseg.inference.predicted_mask import PredictedMask
from volseg.inference.restore import Member, SliceOutput, restore_mask
from volseg.inference.sliding.columns import Flips
from volseg.inference.sliding.memory import Limits, choose_schedule, free_bytes
from volseg.inference.sliding.slabs import ScanSlabs
from volseg.inference.sliding.stream import Counts, stream_logits
from volseg.inference.sliding.windows import Layout
from volseg.inference.timing import StageTimer
from volseg.io.cases import list_images
from volseg.io.checks import check_channels, check_files
from volseg.io.model_folder import model_files_of
from volseg.io.volumes import GRID_MM, check_image, read_channels
from volseg.models.contracts import SegmentationNetwork
from volseg.planning.plan import Plan
from volseg.planning.ranges import unusual
from volseg.postprocessing.rules import Postprocessing
from volseg.preprocessing.preprocess import check_spacing, prepare_image

logger = logging.getLogger(__name__)

Scan = str | Path | Sequence[str | Path] | NDArray[Any]
"""A scan: a file, one file per channel, or an array (D, H, W) or (C, D, H, W)."""
ModelFiles = str | Path | Sequence[str | Path]
"""A model file, or several whose probabilities are averaged."""
STAGES = ("prepare", "network", "restore", "postprocess")
DEFAULT_OPTIONS = PredictOptions()


@dataclass(frozen=True, kw_only=True)
class Segmentation:
    """A mask with the times and counts of its computation.

    Attributes:
        mask: The postprocessed mask, on the scan's own grid.
        seconds: Wall time of each stage: prepare, network, restore, postprocess.
        counts: ``encodings_per_slice`` (per in-plane window and flip; absent without an encoder),
            ``slab_slices``, ``windows``, ``windows_skipped``.
        removed: Changes by postprocessing; see :meth:`Postprocessing.apply`.
    """

    mask: Mask
    seconds: dict[str, float]
    counts: dict[str, float]
    removed: list[dict[str, Any]]


class Predictor:
    """Segment scans with one network or an ensemble.

    Calls share no mutable state, so threads may share a predictor on the CPU.

    Attributes:
        plan: The plan of the (first) network.
        device: Device of the networks.
        model_files: Files of the networks; empty for a network in memory.
        autocast: Reduced precision of the networks, ``None`` for float32.
        postprocessing: Postprocessing of the masks where the options state no other; ``None`` if the networks' differ.
        tolerance_mm: Largest distance of the corners of channels that count as one grid, where `read` is given none.
    """

    def __init__(
        self,
        networks: Sequence[Network],
        *,
        device: str | torch.device = "auto",
        precision: str = "auto",
        model_files: Sequence[Path] = (),
        tolerance_mm: float = GRID_MM,
    ) -> None:
        if precision not in PRECISIONS:
            raise ConfigError("there is no such precision", found=precision, expected=", ".join(PRECISIONS))
        self.tolerance_mm = tolerance_mm
        self.plan = networks[0].plan
        self.postprocessing = common_postprocessing(networks)
        self.device = choose_device(device)
        self.model_files = tuple(model_files)
        dtype = prediction_dtype(precision, self.device)
        self.autocast = dtype if dtype != torch.float32 else None
        self._less_memory: int | None = None  # after a GPU had less than estimated
        self._groups = group_networks(networks)
        for _, models in self._groups:
            for model in models:
                model.to(self.device).eval()

    @classmethod
    def from_file(cls, path: ModelFiles, device: str | torch.device = "auto", precision: str = "auto") -> Predictor:
        """Read a model file, or several whose probabilities are averaged.

        A run folder stands for its model, and the folder of a cross-validation for those of its folds.

        Args:
            path: The file, or several.
            device: ``auto``, ``cpu``, ``cuda``, ``cuda:1``, ``mps``.
            precision: ``32``, ``bf16``, or ``auto``: bf16 on GPUs that compute in it, float32 on CPUs.

        Raises:
            ModelFileError: A file is missing, damaged, not a model file, or inconsistent.
            ConfigError: The device or precision is not available, the models have different classes or channels, or the
                folds of a cross-validation are trained to different ends.
        """
        given = [path] if isinstance(path, str | Path) else path
        files = [model_files_of(Path(one)) for one in given]
        device = choose_device(device)
        networks, paths = list[Network](), list[Path]()
        for members in files:
            folds = [read_network(one, device, prediction_dtype(precision, device)) for one in members]
            check_folds(folds, members)
            networks, paths = networks + folds, paths + members
        check_ensemble(networks, paths)
        return cls(networks, device=device, precision=precision, model_files=paths)

    @classmethod
    def from_model(
        cls,
        model: SegmentationNetwork,
        plan: Plan,
        device: str | torch.device = "auto",
        postprocessing: Postprocessing | None = None,
        tolerance_mm: float = GRID_MM,
    ) -> Predictor:
        """Wrap a network in memory. The network is moved to the device and set to eval mode."""
        networks = [Network(model, plan, postprocessing or Postprocessing())]
        return cls(networks, device=device, tolerance_mm=tolerance_mm)

    def predict(self, scan: Scan, affine: ArrayLike | None = None, *, tta: bool = False) -> PredictedMask:
        """Segment one scan.

        Args:
            scan: A file, with its sister channels (``x_0000``, ``x_0001`` ...) if the model has several; one file per
                channel; or an array (D, H, W) or (C, D, H, W).
            affine: (4, 4) voxel index to RAS+ millimetres, whose column i belongs to axis i of (D, H, W): for nibabel,
                array and affine as they are. Required for an array, invalid for files.
            tta: Test-time augmentation: average over mirrored copies along the plan's mirror axes.

        Returns:
            The mask on the scan's own grid, with the label values of the training data. Its ``save(path)`` writes it.

        Raises:
            DataError: The scan cannot be read, has other channels than the model, or is constant or not finite.
            GeometryError: The affine is invalid, the channels have different grids, or the voxels are of another order
                of magnitude than the plan's.
            ConfigError: The scan does not fit the memory limit of :class:`PredictOptions`, or the models of an ensemble
                have different postprocessing.
        """
        _check_scan(scan, affine)
        paths = [] if isinstance(scan, np.ndarray) else self._files_of(scan)
        volume = self.read(paths or scan, affine)
        for text in self.unusual(volume):
            logger.warning("%s: %s", "the array" if isinstance(scan, np.ndarray) else scan, text)
        mask = self.segment(volume, PredictOptions(tta=tta)).mask
        return PredictedMask(mask.labels, mask.grid, self.plan.labels, paths[0] if paths else None)

    def read(
        self,
        scan: Scan,
        affine: ArrayLike | None = None,
        *,
        resample_channels: bool = False,
        tolerance_mm: float | None = None,
    ) -> Volume:
        """Read and check a scan; see :meth:`predict` and :class:`PredictOptions`."""
        _check_scan(scan, affine)
        if isinstance(scan, np.ndarray):
            volume, paths = _from_array(scan, affine), []
        else:
            paths = self._files_of(scan)
            tolerance_mm = self.tolerance_mm if tolerance_mm is None else tolerance_mm
            check_files(paths, self.plan.channels)
            volume = read_channels(paths, resample=resample_channels, tolerance_mm=tolerance_mm)
        name = paths[0] if paths else None
        check_channels(volume, self.plan.channels, name)
        for plan, _ in self._groups:
            check_spacing(volume.grid, plan, name)
        check_image(volume, paths or ["array"])
        return volume

    def _files_of(self, scan: str | Path | Sequence[str | Path]) -> list[Path]:
        """Return the files of one scan: those given, or a file with its sister channels.

        Raises:
            DataError: There is no scan, or there are several.
        """
        if not isinstance(scan, str | Path):
            return [Path(path) for path in scan]  # `_check_scan` was called
        cases = list_images(scan, self.plan.num_channels)
        if len(cases) > 1:
            found, hint = f"{len(cases)} scans", "volseg.predict writes the masks of a folder or list"
            raise DataError("this is not one scan", file=scan, found=found, hint=hint)
        return list(cases[0].images)

    def unusual(self, volume: Volume) -> list[str]:
        """Return in what a scan differs from all training scans, as far as the plan knows them."""
        ranges = self.plan.ranges
        return [] if ranges is None else unusual(volume, ranges, self.plan.intensity)

    def segment(
        self,
        volume: Volume,
        options: PredictOptions = DEFAULT_OPTIONS,
        *,
        probabilities: Path | None = None,
        uncertainty: Path | None = None,
    ) -> Segmentation:
        """Segment a scan in memory.

        Args:
            volume: The scan, from :meth:`read`.
            options: Settings of the prediction.
            probabilities: A NIfTI file for the class probabilities, (D, H, W, K) float32 on the scan's grid.
            uncertainty: A NIfTI file for the entropy of the probabilities, float32 in nats; the sum over regions.

        Raises:
            ConfigError: The scan does not fit ``options.max_memory_bytes`` or the memory of the GPU.
            OutputError: A file cannot be written.
        """
        while True:
            limit = self._device_limit(options)
            try:
                with suppress(torch.OutOfMemoryError), full_float32():
                    return self._segment(volume, options, limit, probabilities, uncertainty)
            except ConfigError:
                self._less_memory = None  # the next scan may be smaller, or other programs may have ended
                raise
            if self._less_memory is None:
                logger.warning("the GPU has less memory than estimated; smaller batches or thinner slabs are tried")
            self._less_memory = limit // 2
            torch.cuda.empty_cache()  # not where the error is handled: it holds the tensors of the attempt

    def postprocessing_of(self, options: PredictOptions) -> Postprocessing:
        """Return the postprocessing that the options state, or that of the networks.

        Raises:
            ConfigError: The networks' differ, and the options state none.
        """
        chosen = self.postprocessing if options.postprocessing is None else options.postprocessing
        if chosen is None:
            raise ConfigError(
                "the models of the ensemble have different postprocessing",
                found=", ".join(map(str, self.model_files)),
                hint="finish volseg crossval, which stores one in all folds, or choose: --postprocess none",
            )
        return chosen

    def _device_limit(self, options: PredictOptions) -> int:
        """Return the limit on the GPU's memory: what is free or given, or less after it was too much."""
        given = options.max_device_memory_bytes
        limit = free_bytes(self.device) if given is None else given
        return limit if self._less_memory is None else min(limit, self._less_memory)

    def _segment(
        self,
        volume: Volume,
        options: PredictOptions,
        device_limit: int,
        probabilities: Path | None,
        uncertainty: Path | None,
    ) -> Segmentation:
        timer, counts = StageTimer(), Counts()
        regions = self.plan.regions is not None
        # Restoring draws the logits, so the stages prepare and network run inside it.
        with timer.stage("restore"), ExitStack() as files:
            limits = Limits(
                options.max_memory_bytes, device_limit, device_is_stated=device_limit == options.max_device_memory_bytes
            )
            members = [
                self._member(plan, models, volume, options, limits, timer, counts) for plan, models in self._groups
            ]
            trace = members[0].trace
            outputs: list[SliceOutput] = []
            if probabilities is not None:
                outputs.append(
                    files.enter_context(probability_file(probabilities, self.plan.num_classes, trace, regions=regions))
                )
            if uncertainty is not None:
                outputs.append(files.enter_context(uncertainty_file(uncertainty, trace, regions=regions)))
            labels = restore_mask(members, self.plan.mask_values, outputs, regions=regions)
        postprocessing = self.postprocessing_of(options)
        with timer.stage("postprocess"):
            mask, removed = postprocessing.apply(Mask(labels, trace.source), self.plan.labels)
        seconds = {name: timer.seconds.get(name, 0.0) for name in STAGES}
        return Segmentation(mask=mask, seconds=seconds, counts=counts.summary(), removed=removed)

    def _member(
        self,
        plan: Plan,
        models: Sequence[SegmentationNetwork],
        volume: Volume,
        options: PredictOptions,
        limits: Limits,
        timer: StageTimer,
        counts: Counts,
    ) -> Member:
        """Return the networks of one plan as a member, whose logits are computed when its slabs are read."""
        with timer.stage("prepare"):
            image = prepare_image(volume, plan)
        axes = plan.mirror_axes if options.tta else ()
        schedule = choose_schedule(
            models,
            plan,
            Layout.of(image.shape, plan.patch_size),
            Flips.along(axes),
            image.stored.size // image.shape[0],
            limits,
            len(self._groups),
        )
        slabs = stream_logits(
            models,
            ScanSlabs(image, plan.air_below if options.skip_air else None, timer),
            plan,
            tta_axes=axes,
            device=self.device,
            autocast=self.autocast,
            schedule=schedule,
            counts=counts,
        )
        return Member(timer.each("network", slabs), image.trace, plan.nearest_depth)


def _check_scan(scan: object, affine: ArrayLike | None) -> None:
    """Refuse what is neither a file, files nor an array, and an affine for files.

    Raises:
        DataError: The scan is something else; the hint says how to pass images and tensors of other libraries.
    """
    if isinstance(scan, np.ndarray):
        return
    paths = list(scan) if isinstance(scan, list | tuple) else [scan]
    wrong = [type(path).__name__ for path in paths if not isinstance(path, str | Path)]
    if wrong or not paths:
        found, hint = type(scan).__name__, "give the file, or array and affine"
        if isinstance(scan, list | tuple):
            found = f"{found} of {wrong[0] if wrong else 'nothing'}"
        if hasattr(scan, "dataobj"):
            hint = "give its file, or its array and affine: predict(np.asarray(image.dataobj), image.affine)"
        elif isinstance(scan, torch.Tensor):
            hint = "give its array and affine: predict(tensor.cpu().numpy(), affine)"
        raise DataError(
            "this is not a scan",
            found=found,
            expected="a file, a list of one file per channel, or a NumPy array with its affine",
            hint=hint,
        )
    if affine is not None:
        raise DataError("affine is for arrays only; a file has its own", found=scan, hint="leave affine out")


def _from_array(array: NDArray[Any], affine: ArrayLike | None) -> Volume:
    """Return an array (D, H, W) or (C, D, H, W) with its affine as a volume."""
    if array.ndim not in (3, 4):
        raise DataError(
            "the array has the wrong number of axes", found=f"shape {array.shape}", expected="(D, H, W) or (C, D, H, W)"
        )
    if array.dtype.kind not in "iufb":
        raise DataError("the array does not hold real numbers", found=array.dtype, expected="integers or floats")
    if affine is None:
        raise DataError("an array needs an affine", hint="pass affine, a (4, 4) matrix from voxel index to RAS+ mm")
    data = array if array.ndim == 4 else array[None]
    return Volume(data, Grid(data.shape[1:], np.asarray(affine, dtype=np.float64)))
