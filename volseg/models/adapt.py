"""Which weights of the encoder are trained."""

from __future__ import annotations

from volseg.config.schema import ModelConfig
from volseg.models.encoders.slices import SliceEncoder
from volseg.models.lora import add_lora


def adapt(encoder: SliceEncoder, model: ModelConfig) -> None:
    """Prepare an encoder that has its weights, in place, for one kind of adaptation (``model.adaptation``).

    - ``frozen`` and ``linear`` train nothing: no gradients, evaluation mode whatever ``model.train()`` says (so no
      stochastic depth), and no graph. ``linear`` is the linear probe; decoder and aggregator make it one.
    - ``bitfit`` trains every bias: patch embedding, query, key, value and output of the attention, both MLP layers, and
      all LayerNorms, the final one included. Nothing else of the encoder trains; what follows it does.
    - ``lora`` trains the added matrices alone (`volseg.models.lora`); biases and norms stay.
    - ``full`` trains everything but the mask token.

    The patch embedding's weight trains with ``full`` alone: inflated to other channels it is still the pretrained one,
    summed and shared out, so nothing about it is new.

    Args:
        encoder: The slice encoder.
        model: Its settings.

    Source: BitFit, Ben-Zaken et al. 2022, "BitFit: Simple Parameter-efficient Fine-tuning for Transformer-based Masked
    Language-models"; LoRA, Hu et al. 2021.
    """
    mode = model.adaptation
    if mode == "full":
        return
    encoder.requires_grad_(False)
    if mode == "lora":  # the matrices it adds ask for a gradient; what was there keeps its flag
        rank, alpha, dropout = model.lora_rank, model.lora_alpha, model.lora_dropout
        add_lora(encoder.vit, rank=rank, alpha=alpha, dropout=dropout, mlp=model.lora_mlp)
    elif mode == "bitfit":
        for name, parameter in encoder.named_parameters():
            parameter.requires_grad_(name.endswith(".bias"))
    else:
        encoder.frozen = True
        encoder.eval()
