"""A trained network and its plan, ready to segment scans."""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from volseg.config.schema import ModelConfig
from volseg.data.preprocess import preprocess_image
from volseg.errors import ConfigError, DataError, ModelFileError
from volseg.geometry.grid import Grid
from volseg.geometry.trace import Trace
from volseg.geometry.volume import Mask, Volume
from volseg.inference.engine import predict_logits
from volseg.inference.options import PredictOptions
from volseg.inference.postprocess import Postprocessing
from volseg.inference.restore import logits_to_mask
from volseg.io.model_file import read_model
from volseg.io.volumes import check_image, read_channels, read_volume
from volseg.models.build import build_model
from volseg.planning.plan import Plan

Scan = str | Path | Sequence[str | Path] | NDArray[Any]
"""What can be predicted: a file, one file per channel, or an array (D, H, W) or (C, D, H, W)."""

_DEFAULTS = PredictOptions()


@dataclass(frozen=True, kw_only=True)
class Segmentation:
    """A mask and how it came about.

    Attributes:
        mask: Postprocessed, on the scan's grid.
        seconds: Wall time of ``prepare``, ``network``, ``restore`` and ``postprocess``.
        counts: ``encodings_per_slice``, ``slab_slices``, ``windows``, ``windows_skipped``.
        removed: What postprocessing removed.
    """

    mask: Mask
    seconds: dict[str, float]
    counts: dict[str, float]
    removed: list[dict[str, Any]]


class Predictor:
    """Segments scans with one network. Calls share no mutable state, so threads may share a predictor on the CPU.

    Attributes:
        plan: The plan the network was trained with.
        device: Where the network runs.
        model_files: The files it came from; none for a network handed over in memory.
        postprocessing: What is done to its masks.
        autocast: Reduced precision of the network, ``None`` for float32.
    """

    def __init__(
        self,
        model: nn.Module,
        plan: Plan,
        *,
        device: str | torch.device = "auto",
        model_files: tuple[Path, ...] = (),
        postprocessing: Postprocessing | None = None,
    ) -> None:
        self.plan = plan
        self.device = choose_device(device)
        self.model_files = model_files
        self.postprocessing = postprocessing or Postprocessing()
        self.autocast = _native_bf16(self.device)
        self._model = model.to(self.device).eval()

    @classmethod
    def from_file(cls, path: str | Path | Sequence[str | Path], device: str | torch.device = "auto") -> Predictor:
        """Read a model file.

        Raises:
            ModelFileError: The file is missing, damaged, of another kind, or its parts do not fit together.
            ConfigError: There is no such device.
        """
        (path,) = [Path(path)] if isinstance(path, str | Path) else [Path(one) for one in path]
        state, metadata = read_model(path)
        try:
            plan = Plan.from_dict(metadata["plan"])
            postprocessing = Postprocessing.from_dict(metadata["postprocessing"], plan.labels)
            model = build_model(_model_config(metadata["config"]), plan)
        except (ConfigError, KeyError, TypeError, ValueError) as error:
            raise ModelFileError("the model file's settings are not valid", file=path, found=error) from error
        _load_state(model, state, path)
        return cls(model, plan, device=device, model_files=(path,), postprocessing=postprocessing)

    @classmethod
    def from_model(
        cls,
        model: nn.Module,
        plan: Plan,
        device: str | torch.device = "auto",
        postprocessing: Postprocessing | None = None,
    ) -> Predictor:
        """Wrap a network in memory; it is moved to the device and put in eval mode."""
        return cls(model, plan, device=device, postprocessing=postprocessing)

    def predict(self, scan: Scan, affine: ArrayLike | None = None, *, tta: bool = False) -> Mask:
        """Segment one scan.

        Args:
            scan: A file, one file per channel, or an array (D, H, W) or (C, D, H, W).
            affine: (4, 4) voxel index to RAS+ millimetres; for an array only.
            tta: Average over mirrored copies along the plan's mirror axes.

        Returns:
            The mask on the scan's own grid, with the label values of the training data.

        Raises:
            DataError: The scan cannot be read, has other channels than the model, or holds no image.
            GeometryError: The affine is not usable, or the channels lie on different grids.
        """
        return self.segment(self.read(scan, affine), PredictOptions(tta=tta)).mask

    def segment(
        self,
        volume: Volume,
        options: PredictOptions = _DEFAULTS,
        *,
        probabilities: Path | None = None,
        uncertainty: Path | None = None,
    ) -> Segmentation:
        """Segment a scan that was read."""
        if probabilities is not None or uncertainty is not None:
            raise NotImplementedError
        times = [time.perf_counter()]
        logits, trace = self.logits(volume, tta=options.tta)
        times.append(time.perf_counter())
        mask = self.restore(logits, trace)
        times.append(time.perf_counter())
        mask, removed = self.postprocessing.apply(mask, self.plan.labels)
        times.append(time.perf_counter())
        spent = [after - before for before, after in itertools.pairwise(times)]
        seconds = dict(zip(("prepare", "network", "restore", "postprocess"), [0.0, *spent], strict=True))
        return Segmentation(mask=mask, seconds=seconds, counts={"encodings_per_slice": 1.0}, removed=removed)

    def read(self, scan: Scan, affine: ArrayLike | None = None) -> Volume:
        """Read and check a scan; see :meth:`predict`."""
        if isinstance(scan, np.ndarray):
            volume, name = _from_array(scan, affine), None
        else:
            paths = [Path(scan)] if isinstance(scan, str | Path) else [Path(path) for path in scan]
            volume, name = read_volume(paths[0]) if len(paths) == 1 else read_channels(paths), paths[0]
        if volume.data.shape[0] != self.plan.num_channels:
            raise DataError(
                "the scan has other channels than the model was trained with",
                file=name,
                found=f"{volume.data.shape[0]} channel(s)",
                expected=f"{self.plan.num_channels}: {', '.join(self.plan.channels)}",
            )
        check_image(volume, name if name is not None else "array")
        return volume

    def logits(self, volume: Volume, *, tta: bool = False) -> tuple[Tensor, Trace]:
        """Logits (K, D, H, W) on the plan's grid, and how that grid came from the scan's."""
        prepared, trace = preprocess_image(volume, self.plan)
        logits = predict_logits(
            self._model,
            prepared.data,
            self.plan,
            tta_axes=self.plan.mirror_axes if tta else (),
            device=self.device,
            autocast=self.autocast,
        )
        return logits, trace

    def restore(self, logits: Tensor, trace: Trace) -> Mask:
        """Mask on the scan's own grid from :meth:`logits`."""
        return Mask(logits_to_mask(logits, trace, self.plan), trace.source)


def choose_device(name: str | torch.device = "auto") -> torch.device:
    """The named device, or the fastest there is.

    Raises:
        ConfigError: There is no such device here.
    """
    if str(name) == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(
            "there is no such device here", found=name, expected="auto, cpu, cuda, cuda:1, mps", mend="use device cpu"
        ) from error
    return device


def _native_bf16(device: torch.device) -> torch.dtype | None:
    native = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if native else None


def _from_array(array: NDArray[Any], affine: ArrayLike | None) -> Volume:
    if array.ndim not in (3, 4):
        raise DataError("the array is not a volume", found=f"shape {array.shape}", expected="(D, H, W) or (C, D, H, W)")
    if affine is None:
        raise DataError("an array needs an affine", mend="pass affine, a (4, 4) matrix from voxel index to RAS+ mm")
    data = array if array.ndim == 4 else array[None]
    return Volume(data, Grid(data.shape[1:], np.asarray(affine, dtype=np.float64)))


def _model_config(config: Mapping[str, Any]) -> ModelConfig:
    """The network's settings; its weights come from the model file, so the encoder starts empty."""
    settings = dict(config["model"])
    unknown = sorted(set(settings) - {field.name for field in fields(ModelConfig)})
    if unknown:
        raise ConfigError("unknown model settings", found=", ".join(unknown), mend="update volseg")
    return replace(ModelConfig(**settings), weights="random")


def _load_state(model: nn.Module, state: dict[str, Tensor], path: Path) -> None:
    try:
        model.load_state_dict(state, strict=True)
    except RuntimeError as error:
        raise ModelFileError("the weights do not fit the network", file=path, found=error) from error
