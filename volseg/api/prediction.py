"""Reading models and predicting scans."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from volseg.api.arguments import PathLike, check_type

if TYPE_CHECKING:
    from volseg.inference.cohort.records import Summary
    from volseg.inference.predictor import Predictor
    from volseg.parallel import StageProgress
    from volseg.postprocessing.rules import Postprocessing


def predict(
    model: PathLike | Sequence[PathLike] | Predictor,
    scans: PathLike | Sequence[Any],
    output: PathLike,
    *,
    device: str = "auto",
    tta: bool = False,
    skip_air: bool = True,
    max_memory: int | str | None = None,
    max_device_memory: int | str | None = None,
    precision: str = "auto",
    postprocess: Sequence[str] | None = None,
    mask_format: str | None = None,
    split_classes: bool = False,
    probabilities: bool = False,
    uncertainty: bool = False,
    shard: tuple[int, int] | None = None,
    overwrite: bool = False,
    strict: bool = False,
    resample_channels: bool = False,
    progress: StageProgress | None = None,
) -> Summary:
    """Write a mask for each scan, on the scan's own grid, and ``summary.json``.

    A scan that cannot be read or predicted fails alone; the others are finished. Masks of an earlier run with the same
    model, scan and options are skipped.

    Args:
        model: Model file, run folder or folder of a cross-validation, several for an ensemble, or a loaded model.
        scans: A scan, a folder of scans, a list file (``.txt``), or cases (:class:`volseg.io.cases.Case`).
        output: Folder of the masks; or, for one scan, a file such as ``x.nii.gz``.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1``, ``mps``.
        tta: Average over mirrored copies along the plan's mirror axes.
        skip_air: Skip windows that hold only air, where the plan allows it.
        max_memory: Limit of the host's memory beside model, scan and mask, in bytes or as ``"4GB"``; default 4 GB, or
            more if needed.
        max_device_memory: The same for a GPU; default what is free there, less a margin.
        precision: ``32``, ``bf16``, or ``auto``: bf16 on GPUs that compute in it, float32 on CPUs.
        postprocess: Postprocessing instead of the model's, as ``["largest_component=all", "min_volume_ml=2"]``; ``[]``
            for none.
        mask_format: Format of the masks, a key of :data:`volseg.config.mask_formats.MASK_FORMATS`; ``None`` takes that
            of each scan (``.nii.gz`` for NIfTI, ``.seg.nrrd`` for NRRD, ``.mha`` for MetaImage, ``.mgz`` for MGH).
        split_classes: Write ``CASE/CLASS.nii.gz`` (0 and 1) instead of ``CASE.nii.gz``.
        probabilities: Also write the probability of each class.
        uncertainty: Also write a map of the entropy.
        shard: ``(i, n)`` takes every n-th scan from the i-th on.
        overwrite: Replace masks that volseg wrote with another model, scan or setting.
        strict: A scan whose values, voxel size or field of view are far from all training scans fails; otherwise this
            is a warning, on the log and in ``summary.json``.
        resample_channels: Resample channels on other grids to that of the first; otherwise such a scan fails.
        progress: Called with the stage ``predict`` and the number of finished and of all scans.

    Returns:
        What became of each scan; ``count("failed")`` is the number of failures.

    Raises:
        ConfigError: There is no such format or postprocessing, or the output is one file for several scans.
        DataError: There is no scan, or two have the same name.
        ModelFileError: A model file cannot be used.
        OutputError: The output folder cannot be written.
    """
    from volseg.config.sizes import parse_size
    from volseg.inference.cohort.run import predict_folder
    from volseg.inference.options import PredictOptions
    from volseg.inference.predictor import Predictor
    from volseg.parallel import stage_progress

    check_type("model", model, str, Path, Sequence, Predictor)
    check_type("scans", scans, str, Path, Sequence)
    check_type("output", output, str, Path)
    for name, size in (("max_memory", max_memory), ("max_device_memory", max_device_memory)):
        check_type(name, size, str, int, type(None))
    check_type("mask_format", mask_format, str, type(None))
    check_type("postprocess", postprocess, list, tuple, type(None))
    host, gpu = (None if size is None else parse_size(str(size)) for size in (max_memory, max_device_memory))
    predictor = model if isinstance(model, Predictor) else Predictor.from_file(model, device, precision)
    return predict_folder(
        predictor,
        scans,
        output,
        options=PredictOptions(
            tta=tta,
            skip_air=skip_air,
            max_memory_bytes=host,
            max_device_memory_bytes=gpu,
            resample_channels=resample_channels,
            postprocessing=_postprocessing(postprocess, predictor),
        ),
        mask_format=mask_format,
        split_classes=split_classes,
        probabilities=probabilities,
        uncertainty=uncertainty,
        shard=shard,
        overwrite=overwrite,
        strict=strict,
        progress=stage_progress(progress, "predict"),
    )


def _postprocessing(settings: Sequence[str] | None, predictor: Predictor) -> Postprocessing | None:
    """Return the postprocessing that is asked for in place of the model's; ``None`` if none is."""
    from volseg.config.load import load_config
    from volseg.postprocessing.rules import Postprocessing

    if settings is None:
        return None
    config = load_config(None, [f"postprocess.{setting}" for setting in settings])
    return Postprocessing.from_config(config.postprocess, predictor.plan.label_map)


def load(model: PathLike | Sequence[PathLike], device: str = "auto", precision: str = "auto") -> Predictor:
    """Read a trained model, or several whose probabilities are averaged.

    Args:
        model: A ``model.safetensors`` written by training, its run folder, or the folder of a cross-validation; or
            several.
        device: ``auto``, ``cpu``, ``cuda``, ...
        precision: ``32``, ``bf16``, or ``auto``: bf16 on GPUs that compute in it, float32 on CPUs.

    Returns:
        A predictor; ``predict(path)`` or ``predict(array, affine)`` gives a mask on the scan's own grid, which
        ``save(path)`` writes.

    Raises:
        ModelFileError: A file is missing, damaged or not a volseg model.
        ConfigError: There is no such device, or the models have different classes or channels.
    """
    from volseg.inference.predictor import Predictor

    check_type("model", model, str, Path, Sequence)
    return Predictor.from_file(model, device, precision)
