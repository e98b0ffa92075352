"""The schema of a configuration: every setting with default, meaning and check."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from volseg.config.checks import one_of, positive
from volseg.config.encoders import encoder_choices
from volseg.config.pretraining import PretrainConfig
from volseg.config.sizes import parse_size
from volseg.errors import ConfigError

AGGREGATORS = ("none", "conv", "attention")
ATTENTIONS = ("sdpa", "xformers", "math")
ADAPTATIONS = ("frozen", "linear", "lora", "bitfit", "full")
DECODERS = ("unetr", "linear", "unet2d")
BASELINES = ("dynunet", "unetr", "swinunetr")
OPTIMIZERS = ("adamw", "sgd")
HEADERS = (None, "image")
PRECISIONS = ("auto", "32", "bf16")
REPLAYS = ("auto", "never")
LOSSES = ("dice_ce", "dice_focal", "dice", "ce", "focal")
LOGGERS = (None, "tensorboard", "mlflow", "wandb")
FROZEN = ("frozen", "linear")
"""Adaptations that do not change the encoder."""


def _is_amount(value: object) -> bool:
    """Return whether a value is a finite number from 0 on."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= sys.float_info.max


def _check_pattern(key: str, pattern: str | None) -> None:
    try:
        re.compile(pattern or "")
    except re.error as error:
        expected = "one of Python, such as ^p[0-9]+"
        raise ConfigError(
            f"{key} is not a regular expression", found=f"{pattern}: {error}", expected=expected
        ) from error


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Data set, split and token cache.

    Attributes:
        root: Dataset folder, or a CSV of cases; see :func:`volseg.io.datasets.read_dataset`.
        cache: Folder of the preprocessed cases; the default is ``preprocessed`` beside the run folder.
        fold: Which fold is held out for validation: 0 to 4 of five folds, or a fold of the data set or the split file.
            ``all`` trains on every case, holds out none and gives no scores.
        splits: Split file: nnU-Net's ``splits_final.json``, a CSV with ``case`` and ``fold``, or the ``splits.json`` of
            a run. Or ``random``: five folds, also where the data set states its own; ``nnunet``: nnU-Net's five folds.
            ``None`` takes the folds that the data set states, or else five folds by patient where patients are known,
            or else by case.
        patient_pattern: Regular expression that finds the patient in the name of a case: its first group, or the whole
            match. All cases of a patient are in one fold. ``None`` takes the patients that the data set states.
        shots: Number of training cases (few-shot); ``None`` uses all.
        workers: Processes that cut patches, and augment them unless a GPU does; 0 uses the main process.
        cache_tokens: Store the tokens of a frozen encoder on disk and train on them; the encoder runs once per variant.
        token_variants: Stored variants per case: the first is the case itself, the others are augmented.
        cache_limit: Largest size of the token cache, for example ``20GB`` or ``500MB``.
        grid_tolerance_mm: Largest distance of the corners of image, channels and label that still count as one grid;
            more than rounding (0.001 mm) is a warning.
        accept_header_of: ``image`` accepts labels of the same shape whose header states another grid; they take that of
            the image.
    """

    root: str | None = None
    cache: str | None = None
    fold: int | str = 0
    splits: str | None = None
    patient_pattern: str | None = None
    shots: int | None = None
    workers: int = 2
    cache_tokens: bool = False
    token_variants: int = 4
    cache_limit: str = "20GB"
    grid_tolerance_mm: float = 0.01
    accept_header_of: str | None = None

    def __post_init__(self) -> None:
        if self.fold != "all" and not (type(self.fold) is int and self.fold >= 0):
            raise ConfigError("data.fold has no such choice", found=self.fold, expected="a number from 0 on, or all")
        _check_pattern("data.patient_pattern", self.patient_pattern)
        positive("data.shots", self.shots)
        positive("data.workers", self.workers, zero=True)
        positive("data.token_variants", self.token_variants)
        positive("data.grid_tolerance_mm", self.grid_tolerance_mm)
        one_of("data.accept_header_of", self.accept_header_of, HEADERS)
        try:
            parse_size(self.cache_limit)
        except ConfigError as error:
            problem, expected = "data.cache_limit is not a size", "for example 20GB or 500MB"
            raise ConfigError(problem, found=self.cache_limit, expected=expected, hint=error.hint) from error


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The network: encoder, adaptation, aggregator and decoder.

    Attributes:
        encoder: Slice encoder; ``identity`` leaves stem and decoder only (the control).
        encoder_scale: Pixels per voxel of the slices that the encoder sees; one token then covers its patch divided by
            this, which must be the stride of a decoder level. ``None`` follows ``plan.token_stride``.
        weights: Path of an encoder weight file, of a volseg model file or of its run folder, ``official`` (downloaded
            once), or ``random``. There is no default, so that training from scratch is always a choice.
        adaptation: Trained part of the encoder: nothing (``frozen``; ``linear`` is the linear probe, which needs
            ``decoder=linear`` and ``aggregator=none``), ``lora``, the biases (``bitfit``), or everything (``full``).
        lora_rank: Rank of the LoRA matrices.
        lora_alpha: Scale of LoRA: the product of the matrices is multiplied by ``lora_alpha / lora_rank``.
        lora_dropout: Dropout rate on the input of the LoRA matrices.
        lora_mlp: Adapt the feed-forward layers as well as the attention layers.
        aggregator: Mixing of slice tokens along depth: ``none``, ``conv`` (a convolution over five slices) or
            ``attention`` over the stack with positions in millimetres.
        attention: Attention kernel; ``xformers`` needs CUDA and the extra ``volseg[xformers]``.
        decoder: ``unetr`` is a 3D decoder of raw voxels and tokens; ``linear`` (one classifier) and ``unet2d`` decode
            the tokens slice by slice.
        stem: Feed the raw voxels into the ``unetr`` decoder.
        adjacent_slices: Slices that enter the encoder as channels (1 or 3).
        features: Channels of stem and decoder at full resolution; doubled at each level.
        max_features: Largest number of channels of a level.
        drop_path: Stochastic-depth rate of the encoder's last block; it rises linearly from 0.
        checkpoint_encoder: Gradient checkpointing of the encoder: less memory, more time.
        baseline: Train a reference network of MONAI instead of volseg's own: ``dynunet`` with nnU-Net's topology,
            ``unetr`` or ``swinunetr`` with MONAI's default sizes.
    """

    encoder: str = "dinov2_s14"
    encoder_scale: float | None = None
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
        one_of("model.encoder", self.encoder, encoder_choices())
        one_of("model.adaptation", self.adaptation, ADAPTATIONS)
        if self.adaptation == "linear":
            self._check_linear_probe()
        one_of("model.aggregator", self.aggregator, AGGREGATORS)
        one_of("model.attention", self.attention, ATTENTIONS)
        one_of("model.decoder", self.decoder, DECODERS)
        one_of("model.adjacent_slices", self.adjacent_slices, (1, 3))
        one_of("model.baseline", self.baseline, (None, *BASELINES))
        positive("model.encoder_scale", self.encoder_scale)
        if self.encoder_scale is not None and (self.encoder == "identity" or self.baseline is not None):
            found = f"model.encoder={self.encoder} model.baseline={self.baseline}"
            raise ConfigError("model.encoder_scale needs an encoder", found=found, hint="leave model.encoder_scale out")
        positive("model.features", self.features)
        positive("model.max_features", self.max_features)
        if not 0 <= self.drop_path < 1:
            raise ConfigError("model.drop_path is out of range", found=self.drop_path, expected="0 <= drop_path < 1")
        positive("model.lora_rank", self.lora_rank)
        positive("model.lora_alpha", self.lora_alpha)
        if not 0 <= self.lora_dropout < 1:
            raise ConfigError(
                "model.lora_dropout is out of range", found=self.lora_dropout, expected="0 <= dropout < 1"
            )
        if self.encoder == "identity" and self.baseline is None and (self.decoder != "unetr" or not self.stem):
            raise ConfigError(
                "this decoder needs an encoder",
                found=f"model.encoder=identity model.decoder={self.decoder} model.stem={str(self.stem).lower()}",
                expected="model.decoder=unetr model.stem=true",
                hint="choose another model.encoder, or model.decoder=unetr model.stem=true",
            )

    def _check_linear_probe(self) -> None:
        """Check that a linear probe has one linear classifier on a frozen encoder and no other trained part."""
        wrong = [key for key, value in (("decoder", "linear"), ("aggregator", "none")) if getattr(self, key) != value]
        if wrong or self.encoder == "identity":
            raise ConfigError(
                "model.adaptation=linear is the linear probe and needs a linear decoder, no aggregator and an encoder",
                found=f"model.decoder={self.decoder}, model.aggregator={self.aggregator}, model.encoder={self.encoder}",
                expected="model.decoder=linear, model.aggregator=none, an encoder",
                hint="set model.decoder=linear model.aggregator=none, or model.adaptation=frozen",
            )


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """Training augmentation; probabilities are per sample.

    Attributes:
        affine: Probability of a rotation and scaling.
        rotation_degrees: Largest rotation; thick-slice sets rotate in plane only.
        scale: Largest relative change of size (0.25 scales by 0.75 to 1.25).
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
        positive("augment.rotation_degrees", self.rotation_degrees, zero=True)


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Length of a run, optimizer, sampling and validation. Exactly one of ``max_steps`` and ``max_minutes`` is set.

    Attributes:
        max_steps: Optimizer steps.
        max_minutes: Minutes of training and validation; preprocessing does not count.
        batch_size: Patches that pass through the network together, in all processes of ``torchrun``; ``null`` takes the
            plan's.
        accumulate: Batches per optimizer step, one after the other: the gradient is that of ``accumulate`` times
            ``batch_size`` patches, in the memory of one batch. Steps are optimizer steps everywhere.
        optimizer: ``adamw`` with warm-up and cosine decay, or nnU-Net's ``sgd``: Nesterov momentum of 0.99 and
            polynomial decay. nnU-Net's other settings are ``lr=0.01 weight_decay=3e-5 clip_norm=12``.
        lr: Peak learning rate of the stem, aggregator and decoder.
        encoder_lr_scale: Learning rate of a pretrained encoder as a fraction of ``lr``; LoRA matrices use ``lr``.
        layer_decay: Learning rate of each layer of a pretrained encoder as a fraction of the next layer's; 1 is off.
        weight_decay: Weight decay (not on norms and biases).
        warmup_fraction: Part of the run during which the learning rate of AdamW rises linearly from 0.
        clip_norm: Gradients are clipped to this norm.
        ema_decay: Decay of the exponential moving average of the weights, which is validated and saved.
        foreground_fraction: Fraction of patches centred on a voxel of a random foreground class.
        loss: ``dice_ce`` (soft Dice and cross-entropy), ``dice_focal``, ``dice``, ``ce`` or ``focal``.
        batch_dice: Sum the overlaps of Dice over a batch; otherwise every patch has a Dice of its own.
        class_weights: Weight of each class in every loss: class -> weight, 1 for the others, or a list with the
            background first. Only their ratios matter.
        focal_gamma: Exponent of the focal loss: how much less voxels count that are already right.
        deep_supervision: Add losses on the decoder's coarser levels.
        replay: ``auto`` records the kernels of the first step on a CUDA device and replays them, where that is possible
            and gives the same gradients; ``never`` computes every step anew. Pretraining does that in any case.
        validate_every: Steps between validations on whole volumes.
        validate_cases: Most cases of a validation during training, 0 for none; the final one uses all held-out cases.
        checkpoint_every: Most steps between checkpoints.
        checkpoint_minutes: Most minutes of training and validation between checkpoints; ``None`` counts steps alone.
        keep_best: Also write the weights of the best validation as ``model_best.safetensors``. They are chosen on the
            held-out cases, whose scores are optimistic then; the model file says so.
        stop_after: Validations without a better mean Dice after which training ends; ``null`` spends the whole budget.
            The held-out cases then decide the length, so their scores are optimistic; the model file says so.
        logger: Copy the numbers of the log to ``tensorboard``, ``mlflow`` or ``wandb``, each an extra of this name.
    """

    max_steps: int | None = None
    max_minutes: float | None = None
    batch_size: int | None = None
    accumulate: int = 1
    optimizer: str = "adamw"
    lr: float = 3e-3
    encoder_lr_scale: float = 0.03
    layer_decay: float = 1.0
    weight_decay: float = 0.01
    warmup_fraction: float = 0.05
    clip_norm: float = 1.0
    ema_decay: float = 0.99
    foreground_fraction: float = 0.66
    loss: str = "dice_ce"
    batch_dice: bool = True
    class_weights: Any = None
    focal_gamma: float = 2.0
    deep_supervision: bool = True
    replay: str = "auto"
    validate_every: int = 500
    validate_cases: int = 8
    checkpoint_every: int = 250
    checkpoint_minutes: float | None = 5.0
    keep_best: bool = False
    stop_after: int | None = None
    logger: str | None = None

    def __post_init__(self) -> None:
        for name in ("max_steps", "max_minutes", "batch_size", "accumulate", "lr", "clip_norm"):
            positive(f"train.{name}", getattr(self, name))
        for name in ("validate_every", "checkpoint_every", "checkpoint_minutes", "stop_after"):
            positive(f"train.{name}", getattr(self, name))
        for name in ("weight_decay", "encoder_lr_scale", "validate_cases", "focal_gamma"):
            positive(f"train.{name}", getattr(self, name), zero=True)
        one_of("train.optimizer", self.optimizer, OPTIMIZERS)
        one_of("train.loss", self.loss, LOSSES)
        one_of("train.replay", self.replay, REPLAYS)
        one_of("train.logger", self.logger, LOGGERS)
        if self.stop_after is not None and self.validate_cases == 0:
            hint = "set train.validate_cases, or train.stop_after=null"
            raise ConfigError("train.stop_after needs validations", found="train.validate_cases=0", hint=hint)
        self._check_class_weights()
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

    def _check_class_weights(self) -> None:
        """Check the form of the weights; the classes they belong to are known with the data set."""
        weights = self.class_weights
        values = weights.values() if isinstance(weights, Mapping) else weights
        listed = isinstance(weights, Mapping | list | tuple) and all(map(_is_amount, values))
        if weights is not None and not listed:
            expected = "numbers from 0 on, for example {liver: 2} or [1, 2]"
            raise ConfigError("train.class_weights are not weights", found=weights, expected=expected)


@dataclass(frozen=True, kw_only=True)
class PostprocessConfig:
    """Postprocessing of predicted masks, by class name; none by default.

    Attributes:
        largest_component: Classes of which only the largest component is kept: names, or ``all`` (each class alone).
        min_volume_ml: Smaller components are removed: one volume for all classes, or class -> ml.
        fill_holes: Classes whose background holes are filled: names, or ``all``.
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
            if not _is_amount(value) and volumes is not None:
                expected = "a number from 0 on, or {liver: 5}"
                raise ConfigError("postprocess.min_volume_ml is not a volume", found=volumes, expected=expected)


@dataclass(frozen=True, kw_only=True)
class Config:
    """A training run.

    Attributes:
        output: Run folder.
        seed: Seed of the initial weights, of all samples and of the choice of shots; it does not change the folds.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1``, ``mps``.
        precision: Precision of training. ``auto`` is bf16 on hardware that computes in it (most GPUs, CPUs with AMX),
            otherwise float32.
        deterministic: Repeat a run bitwise on a GPU too, with slower algorithms; a CPU does so without.
        plan: Overrides of the plan's fields.
    """

    output: str = "runs/volseg"
    seed: int = 0
    device: str = "auto"
    precision: str = "auto"
    deterministic: bool = False
    data: DataConfig = field(default_factory=DataConfig)
    plan: dict[str, Any] = field(default_factory=dict)
    model: ModelConfig = field(default_factory=ModelConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    postprocess: PostprocessConfig = field(default_factory=PostprocessConfig)
    pretrain: PretrainConfig = field(default_factory=PretrainConfig)

    def __post_init__(self) -> None:
        one_of("precision", self.precision, PRECISIONS)
        if not 0 <= self.seed < 2**63:
            raise ConfigError("seed is out of range", found=self.seed, expected="0 <= seed < 2**63")
        for name, off in (("keep_best", False), ("stop_after", None)):
            if self.data.fold == "all" and getattr(self.train, name) != off:
                hint = f"set train.{name}={'false' if off is False else 'null'}, or a fold"
                raise ConfigError(f"train.{name} needs held-out cases", found="data.fold=all", hint=hint)
        if self.data.cache_tokens:
            _check_token_cache(self.model)


def _check_token_cache(model: ModelConfig) -> None:
    """Check that the tokens of this encoder can be stored: it is not trained, or there is none (the control)."""
    hint = "set data.cache_tokens=false"
    if model.baseline is not None:
        raise ConfigError("data.cache_tokens needs an encoder with tokens", found=model.baseline, hint=hint)
    if model.encoder != "identity" and model.adaptation not in FROZEN:
        raise ConfigError(
            "data.cache_tokens needs an encoder that is not trained",
            found=f"model.adaptation={model.adaptation}",
            expected=" or ".join(f"model.adaptation={name}" for name in FROZEN),
            hint=f"set model.adaptation=frozen, or {hint.removeprefix('set ')}",
        )
