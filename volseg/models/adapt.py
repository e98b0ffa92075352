"""Which weights of the encoder are trained."""

from __future__ import annotations

from volseg.config.schema import ModelConfig
from volseg.errors import ConfigError
from volseg.models.encoders.slices import SliceEncoder
from volseg.models.lora import add_lora


def adapt(encoder: SliceEncoder, model: ModelConfig) -> None:
    """Prepare an encoder with its initial weights, in place, for an adaptation (``model.adaptation``).

    - ``frozen`` and ``linear`` train nothing: no gradients and no graph, and evaluation mode even after
      ``model.train()`` (so no stochastic depth). ``linear`` is the linear probe, which also needs its decoder and
      aggregator.
    - ``bitfit`` trains every bias: patch embedding, attention, MLP, and all LayerNorms, the final one included.
    - ``lora`` trains the added matrices only (`volseg.models.lora`); biases and norms do not train.
    - ``full`` trains everything but the mask token.

    The weight of the patch embedding trains with ``full`` only: adapted to other channels it is still the pretrained
    one, summed and divided.

    Args:
        encoder: The slice encoder.
        model: Its settings.

    Raises:
        ConfigError: ``lora`` for an encoder without the layers that it adapts.

    Source: BitFit, Ben-Zaken et al. 2022, "BitFit: Simple Parameter-efficient Fine-tuning for Transformer-based Masked
    Language-models"; LoRA, Hu et al. 2021.
    """
    mode = model.adaptation
    if mode == "full":
        return
    encoder.requires_grad_(False)
    if mode == "lora":  # the matrices that it adds require a gradient; the other parameters keep their flag
        _add_lora(encoder, model)
    elif mode == "bitfit":
        for name, parameter in encoder.named_parameters():
            parameter.requires_grad_(name.endswith(".bias"))
    else:
        encoder.frozen = True
        encoder.eval()


def _add_lora(encoder: SliceEncoder, model: ModelConfig) -> None:
    vit = encoder.vit
    layers = (*vit.attention_layers, *(vit.mlp_layers if model.lora_mlp else ()))
    if not layers:
        raise ConfigError(
            "the encoder has no layers for LoRA",
            found=f"model.encoder={model.encoder} model.adaptation=lora",
            hint="set model.adaptation=full, bitfit or frozen",
        )
    add_lora(vit, layers, rank=model.lora_rank, alpha=model.lora_alpha, dropout=model.lora_dropout)
