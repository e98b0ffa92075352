"""Every setting, its default and its check. Defaults live here and nowhere else."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from volseg.errors import ConfigError

ENCODERS = (
    "dinov2_s14",
    "dinov2_b14",
    "dinov2_l14",
    "dinov2_g14",
    "dinov2_s14_reg",
    "dinov2_b14_reg",
    "dinov2_l14_reg",
    "dinov2_g14_reg",
    "tiny",
    "identity",
)
AGGREGATORS = ("none", "conv", "attention")
ATTENTIONS = ("sdpa", "math")
ADAPTATIONS = ("frozen", "full")
DECODERS = ("unetr", "linear", "unet2d")
BASELINES = ("dynunet",)
PRECISIONS = ("auto", "32", "bf16")


def _one_of(key: str, value: object, allowed: tuple[object, ...]) -> None:
    if value not in allowed:
        raise ConfigError(
            f"{key} has no such choice", found=value, expected=", ".join(map(str, allowed)), mend=f"set {key}=..."
        )


def _positive(key: str, value: float | None, *, zero: bool = False) -> None:
    if value is not None and (value < 0 or (value == 0 and not zero)):
        raise ConfigError(f"{key} is out of range", found=value, expected=">= 0" if zero else "> 0")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where the cases are and how they are split.

    Attributes:
        root: Dataset folder (Decathlon, nnU-Net v2 raw, or ``images/`` and ``labels/``).
        cache: Folder of the preprocessed cases; default ``preprocessed`` beside the run folder.
        fold: Which of the five folds is held out for validation (0..4).
        shots: Train on this many cases only (few-shot); ``None`` takes all.
        workers: Processes that cut and augment patches; 0 does it in the main process.
    """

    root: str | None = None
    cache: str | None = None
    fold: int = 0
    shots: int | None = None
    workers: int = 2

    def __post_init__(self) -> None:
        _one_of("data.fold", self.fold, (0, 1, 2, 3, 4))
        _positive("data.shots", self.shots)
        _positive("data.workers", self.workers, zero=True)


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """What the network is made of.

    Attributes:
        encoder: Slice encoder; ``identity`` leaves stem and decoder only (the control).
        weights: Path of an encoder weight file, or ``random``. There is no default: a random start must be asked for.
        adaptation: What of the encoder is trained.
        aggregator: How slice tokens are mixed along depth: not at all, by a convolution over five slices, or by
            attention over the stack with positions in millimetres.
        attention: Attention kernel.
        decoder: ``unetr`` works in 3D on raw voxels and tokens; ``linear`` (one classifier) and ``unet2d`` see the
            tokens of one slice at a time.
        stem: Whether raw voxels enter the ``unetr`` decoder.
        adjacent_slices: Slices that enter the encoder as channels (1 or 3).
        features: Channels of the decoder and the raw-voxel stem at full resolution; doubled at each level.
        max_features: Upper limit of that doubling.
        drop_path: Highest stochastic-depth rate of the encoder (linear over depth).
        checkpoint_encoder: Compute the encoder's activations twice instead of keeping them: less memory, more time.
        baseline: Build this reference network instead of volseg's own (benchmarks).
    """

    encoder: str = "dinov2_s14"
    weights: str | None = None
    adaptation: str = "full"
    aggregator: str = "attention"
    attention: str = "sdpa"
    decoder: str = "unetr"
    stem: bool = True
    adjacent_slices: int = 3
    features: int = 16
    max_features: int = 320
    drop_path: float = 0.0
    checkpoint_encoder: bool = False
    baseline: str | None = None

    def __post_init__(self) -> None:
        _one_of("model.encoder", self.encoder, ENCODERS)
        _one_of("model.adaptation", self.adaptation, ADAPTATIONS)
        _one_of("model.aggregator", self.aggregator, AGGREGATORS)
        _one_of("model.attention", self.attention, ATTENTIONS)
        _one_of("model.decoder", self.decoder, DECODERS)
        _one_of("model.adjacent_slices", self.adjacent_slices, (1, 3))
        _one_of("model.baseline", self.baseline, (None, *BASELINES))
        _positive("model.features", self.features)
        _positive("model.max_features", self.max_features)
        if not 0 <= self.drop_path < 1:
            raise ConfigError("model.drop_path is out of range", found=self.drop_path, expected="0 <= drop_path < 1")
        if self.encoder == "identity" and self.baseline is None and (self.decoder != "unetr" or not self.stem):
            raise ConfigError(
                "without an encoder nothing enters this decoder",
                found=f"model.encoder=identity model.decoder={self.decoder} model.stem={str(self.stem).lower()}",
                expected="model.decoder=unetr model.stem=true",
                mend="choose another model.encoder, or that decoder",
            )


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """Training augmentation; probabilities are per sample.

    Attributes:
        affine: Probability of a random rotation and scaling.
        rotation_degrees: Largest rotation; thick-slice sets rotate in plane only.
        scale: Largest relative change of size (0.25: 0.75 to 1.25).
        noise: Probability of Gaussian noise.
        blur: Probability of Gaussian blur.
        gamma: Probability of a gamma change of contrast.
        bias_field: Probability of a smooth intensity bias (MRI only).
        mirror: Probability of a flip along each of the plan's mirror axes.
    """

    affine: float = 0.5
    rotation_degrees: float = 20.0
    scale: float = 0.25
    noise: float = 0.15
    blur: float = 0.1
    gamma: float = 0.3
    bias_field: float = 0.1
    mirror: float = 0.5

    def __post_init__(self) -> None:
        for name in ("affine", "noise", "blur", "gamma", "bias_field", "mirror"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"augment.{name} is not a probability", found=getattr(self, name), expected="0 to 1")
        if not 0 <= self.scale < 1:
            raise ConfigError("augment.scale is out of range", found=self.scale, expected="0 <= scale < 1")
        _positive("augment.rotation_degrees", self.rotation_degrees, zero=True)


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How the network is trained. Exactly one of ``max_steps`` and ``max_minutes`` is set.

    Attributes:
        max_steps: Optimizer steps.
        max_minutes: Minutes of training and validation (preprocessing does not count).
        batch_size: Patches per step.
        lr: Peak learning rate of the stem, aggregator and decoder.
        encoder_lr_scale: The encoder's learning rate as a fraction of ``lr``.
        weight_decay: AdamW's decoupled weight decay (not on norms and biases).
        warmup_fraction: Part of the run over which the learning rate rises from 0.
        clip_norm: Largest norm of the gradient.
        ema_decay: Decay of the averaged weights that are validated and kept.
        foreground_fraction: Share of patches centred on a voxel of a random foreground class.
        deep_supervision: Losses on the decoder's coarser levels.
        validate_every: Steps between whole-volume validations of at most ``validate_cases`` cases.
        validate_cases: Cases of the intermediate validations; the final one takes all.
        checkpoint_every: Steps between checkpoints.
        keep_best: Write the best-on-validation weights as ``model_best.safetensors`` too.
    """

    max_steps: int | None = None
    max_minutes: float | None = None
    batch_size: int = 2
    lr: float = 1e-3
    encoder_lr_scale: float = 0.1
    weight_decay: float = 0.01
    warmup_fraction: float = 0.05
    clip_norm: float = 1.0
    ema_decay: float = 0.99
    foreground_fraction: float = 0.66
    deep_supervision: bool = True
    validate_every: int = 500
    validate_cases: int = 8
    checkpoint_every: int = 250
    keep_best: bool = False

    def __post_init__(self) -> None:
        for name in ("max_steps", "max_minutes", "batch_size", "lr", "clip_norm", "validate_every", "checkpoint_every"):
            _positive(f"train.{name}", getattr(self, name))
        for name in ("weight_decay", "encoder_lr_scale", "validate_cases"):
            _positive(f"train.{name}", getattr(self, name), zero=True)
        if not 0 <= self.warmup_fraction < 1:
            raise ConfigError("train.warmup_fraction is out of range", found=self.warmup_fraction, expected="0 to 1")
        if not 0 <= self.ema_decay < 1:
            raise ConfigError("train.ema_decay is out of range", found=self.ema_decay, expected="0 <= decay < 1")
        if not 0 <= self.foreground_fraction <= 1:
            raise ConfigError(
                "train.foreground_fraction is out of range", found=self.foreground_fraction, expected="0 to 1"
            )
        if self.max_steps is not None and self.max_minutes is not None:
            raise ConfigError(
                "both train.max_steps and train.max_minutes are set",
                found=f"max_steps={self.max_steps}, max_minutes={self.max_minutes}",
                expected="one of them",
                mend="set the other to null",
            )


@dataclass(frozen=True, kw_only=True)
class Config:
    """A whole experiment.

    Attributes:
        output: Run folder.
        seed: Seed of the initial weights, of every sample and of the choice of shots; the folds are the same for all.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1``, ``mps``.
        precision: ``auto`` takes bf16 only where the hardware has it.
        plan: Overrides of the plan, by the names of its fields.
    """

    output: str = "runs/volseg"
    seed: int = 0
    device: str = "auto"
    precision: str = "auto"
    data: DataConfig = field(default_factory=DataConfig)
    plan: dict[str, Any] = field(default_factory=dict)
    model: ModelConfig = field(default_factory=ModelConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    train: TrainConfig = field(default_factory=TrainConfig)

    def __post_init__(self) -> None:
        _one_of("precision", self.precision, PRECISIONS)
