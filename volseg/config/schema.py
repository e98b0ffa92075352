"""Every setting, its default and its check. Defaults live here and nowhere else."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from volseg.config.encoders import encoder_choices
from volseg.config.sizes import parse_size
from volseg.errors import ConfigError

AGGREGATORS = ("none", "conv", "attention")
ATTENTIONS = ("sdpa", "xformers", "math")
ADAPTATIONS = ("frozen", "linear", "lora", "bitfit", "full")
DECODERS = ("unetr", "linear", "unet2d")
BASELINES = ("dynunet",)
PRECISIONS = ("auto", "32", "bf16")
FROZEN = ("frozen", "linear")
"""Adaptations that leave the encoder as it is."""


def _one_of(key: str, value: object, allowed: tuple[object, ...]) -> None:
    if value not in allowed:
        raise ConfigError(
            f"{key} has no such choice", found=value, expected=", ".join(map(str, allowed)), hint=f"set {key}=..."
        )


def _positive(key: str, value: float | None, *, zero: bool = False) -> None:
    if value is not None and (not math.isfinite(value) or value < 0 or (value == 0 and not zero)):
        raise ConfigError(
            f"{key} is out of range", found=value, expected="finite and >= 0" if zero else "finite and > 0"
        )


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where the cases are and how they are split.

    Attributes:
        root: Dataset folder (Decathlon, nnU-Net v2 raw, or ``images/`` and ``labels/``).
        cache: Folder of the preprocessed cases; default ``preprocessed`` beside the run folder.
        fold: Which of the five folds is held out for validation (0..4).
        shots: Train on this many cases only (few-shot); ``None`` takes all.
        workers: Processes that cut and augment patches; 0 does it in the main process.
        cache_tokens: Keep the tokens of a frozen encoder on disk and train on these; it runs once for each variant.
        token_variants: Stored variants of each case: the first as it is, the others augmented.
        cache_limit: Largest token cache, for example ``20GB`` (of 10^9 bytes), ``500MB``, or bytes.
    """

    root: str | None = None
    cache: str | None = None
    fold: int = 0
    shots: int | None = None
    workers: int = 2
    cache_tokens: bool = False
    token_variants: int = 4
    cache_limit: str = "20GB"

    def __post_init__(self) -> None:
        _one_of("data.fold", self.fold, (0, 1, 2, 3, 4))
        _positive("data.shots", self.shots)
        _positive("data.workers", self.workers, zero=True)
        _positive("data.token_variants", self.token_variants)
        try:
            parse_size(self.cache_limit)
        except ConfigError as error:
            problem = "data.cache_limit is not a size"
            raise ConfigError(problem, found=self.cache_limit, expected="for example 20GB or 500MB") from error


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """What the network is made of.

    Attributes:
        encoder: Slice encoder; ``identity`` leaves stem and decoder only (the control).
        weights: Path of an encoder weight file or of a volseg model file, ``official`` (downloaded once), or
            ``random``. There is no default: a random start must be asked for.
        adaptation: What of the encoder is trained: nothing (``frozen``; ``linear`` is the linear probe, which needs
            ``decoder=linear`` and ``aggregator=none``), ``lora``, the biases (``bitfit``), or everything (``full``).
        lora_rank: Rank of LoRA's matrices.
        lora_alpha: Factor of LoRA's product, times the rank; as large as the rank, the factor is 1.
        lora_dropout: Dropout before LoRA's product.
        lora_mlp: LoRA on the feed-forward layers too, not on the attention's alone.
        aggregator: How slice tokens are mixed along depth: not at all, by a convolution over five slices, or by
            attention over the stack with positions in millimetres.
        attention: Attention kernel; ``xformers`` needs CUDA and the extra ``volseg[xformers]``.
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
    lora_rank: int = 8
    lora_alpha: float = 8.0
    lora_dropout: float = 0.0
    lora_mlp: bool = False
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
        _one_of("model.encoder", self.encoder, encoder_choices())
        _one_of("model.adaptation", self.adaptation, ADAPTATIONS)
        if self.adaptation == "linear":
            self._check_linear_probe()
        _one_of("model.aggregator", self.aggregator, AGGREGATORS)
        _one_of("model.attention", self.attention, ATTENTIONS)
        _one_of("model.decoder", self.decoder, DECODERS)
        _one_of("model.adjacent_slices", self.adjacent_slices, (1, 3))
        _one_of("model.baseline", self.baseline, (None, *BASELINES))
        _positive("model.features", self.features)
        _positive("model.max_features", self.max_features)
        if not 0 <= self.drop_path < 1:
            raise ConfigError("model.drop_path is out of range", found=self.drop_path, expected="0 <= drop_path < 1")
        _positive("model.lora_rank", self.lora_rank)
        _positive("model.lora_alpha", self.lora_alpha)
        if not 0 <= self.lora_dropout < 1:
            raise ConfigError(
                "model.lora_dropout is out of range", found=self.lora_dropout, expected="0 <= dropout < 1"
            )
        if self.encoder == "identity" and self.baseline is None and (self.decoder != "unetr" or not self.stem):
            raise ConfigError(
                "without an encoder nothing enters this decoder",
                found=f"model.encoder=identity model.decoder={self.decoder} model.stem={str(self.stem).lower()}",
                expected="model.decoder=unetr model.stem=true",
                hint="choose another model.encoder, or that decoder",
            )

    def _check_linear_probe(self) -> None:
        """One linear classifier on a frozen encoder: anything else that trains would make it something else."""
        wrong = [key for key, value in (("decoder", "linear"), ("aggregator", "none")) if getattr(self, key) != value]
        if wrong or self.encoder == "identity":
            raise ConfigError(
                "model.adaptation=linear is the linear probe and needs its other parts",
                found=f"model.decoder={self.decoder}, model.aggregator={self.aggregator}, model.encoder={self.encoder}",
                expected="model.decoder=linear, model.aggregator=none, an encoder",
                hint="set model.decoder=linear model.aggregator=none, or model.adaptation=frozen",
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
        encoder_lr_scale: The pretrained encoder's learning rate as a fraction of ``lr``; LoRA's matrices are new and
            take ``lr``.
        layer_decay: Factor of the learning rate from each of the pretrained encoder's layers to the one before it; 1 is
            off.
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
    layer_decay: float = 1.0
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
        if not 0 < self.layer_decay <= 1:
            raise ConfigError("train.layer_decay is out of range", found=self.layer_decay, expected="0 < decay <= 1")
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
                hint="set the other to null",
            )


@dataclass(frozen=True, kw_only=True)
class PostprocessConfig:
    """What is done to the model's masks, by the names of the classes; nothing by default.

    Attributes:
        largest_component: Classes of which only the largest component stays; names, or ``all`` (each by itself).
        min_volume_ml: Components of less than this are removed; one number for all classes, or class -> ml.
        fill_holes: Classes whose holes are filled where they are background; names, or ``all``.
    """

    largest_component: Any = None
    min_volume_ml: Any = None
    fill_holes: Any = None

    def __post_init__(self) -> None:
        for key in ("largest_component", "fill_holes"):
            names = getattr(self, key)
            listed = isinstance(names, (list, tuple)) and all(isinstance(name, str) for name in names)
            if names is not None and names != "all" and not listed:
                raise ConfigError(f"postprocess.{key} is not a list of names", found=names, expected="[liver] or all")
        volumes = self.min_volume_ml
        for value in volumes.values() if isinstance(volumes, Mapping) else [volumes]:
            number = isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < float("inf")
            if not number and volumes is not None:
                expected = "a number from 0 on, or {liver: 5}"
                raise ConfigError("postprocess.min_volume_ml is not a volume", found=volumes, expected=expected)


@dataclass(frozen=True, kw_only=True)
class Config:
    """A whole experiment.

    Attributes:
        output: Run folder.
        seed: Seed of the initial weights, of every sample and of the choice of shots; the folds are the same for all.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1``, ``mps``.
        precision: Of training. ``auto`` takes bf16 only where the hardware has it: most GPUs, and CPUs with AMX.
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
    postprocess: PostprocessConfig = field(default_factory=PostprocessConfig)

    def __post_init__(self) -> None:
        _one_of("precision", self.precision, PRECISIONS)
        if not 0 <= self.seed < 2**63:
            raise ConfigError("seed is out of range", found=self.seed, expected="0 <= seed < 2**63")
        if self.data.cache_tokens:
            _check_token_cache(self.model)


def _check_token_cache(model: ModelConfig) -> None:
    """Tokens can be kept only of an encoder that is there and does not change."""
    hint = "set data.cache_tokens=false"
    if model.baseline is not None or model.encoder == "identity":
        name = model.baseline or model.encoder
        raise ConfigError("data.cache_tokens needs an encoder with tokens", found=name, hint=hint)
    if model.adaptation not in FROZEN:
        raise ConfigError(
            "data.cache_tokens needs an encoder that is not trained",
            found=f"model.adaptation={model.adaptation}",
            expected=" or ".join(f"model.adaptation={name}" for name in FROZEN),
            hint=f"set model.adaptation=frozen, or {hint.removeprefix('set ')}",
        )
