"""The encoders of transformers that volseg's are compared with, with random weights of a trained model's scale."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from volseg.config.encoders import EncoderEntry

Taps = Callable[[torch.Tensor, Sequence[int]], list[torch.Tensor]]
"""Images ``(B, 3, H, W)`` and numbers of blocks -> normalised patch tokens after each of them."""


@dataclass(frozen=True)
class Oracle:
    """One model of transformers.

    Attributes:
        model: The model; its state dict has the names of Hugging Face.
        taps: What to compare.
        follow: Let it use position embeddings or angles of ours in place of its own; called once, with our network.
    """

    model: nn.Module
    taps: Taps
    follow: Callable[[Any], None] = lambda _: None


def oracle(name: str, entry: EncoderEntry, dtype: torch.dtype) -> Oracle:
    """Return the model of transformers for an encoder of the catalogue; only its depth may differ from ``entry``."""
    return FAMILIES[name.partition("_")[0]](entry, dtype)


def _settings(entry: EncoderEntry, *, attention: str) -> dict[str, Any]:
    return {
        "hidden_size": entry.width,
        "num_hidden_layers": entry.depth,
        "num_attention_heads": entry.heads,
        "image_size": entry.grid * entry.patch,
        "patch_size": entry.patch,
        "attn_implementation": attention,
    }


def _drawn(make: Callable[[], nn.Module], dtype: torch.dtype) -> nn.Module:
    """Make a model without its own slow initialisation, and draw its weights; buffers are left to the caller."""
    with torch.device("meta"):
        model = make()
    model = model.to(dtype).to_empty(device="cpu").eval()
    for name, parameter in model.named_parameters():
        if "layer_scale" in name:
            nn.init.uniform_(parameter, 0.1, 1.0)
        else:
            nn.init.normal_(parameter, mean=float("norm" in name and "weight" in name), std=0.02)
    return model


def _hidden_taps(model: nn.Module, norm: nn.Module, first: int, **settings: Any) -> Taps:
    """Return the taps of a model that returns all hidden states; ``first`` tokens are no patches."""

    def taps(images: torch.Tensor, indices: Sequence[int]) -> list[torch.Tensor]:
        hidden = model(pixel_values=images, output_hidden_states=True, **settings).hidden_states
        return [norm(hidden[index + 1])[:, first:] for index in indices]

    return taps


def _dinov2(entry: EncoderEntry, dtype: torch.dtype) -> Oracle:
    import transformers

    kind = "Dinov2WithRegisters" if entry.registers else "Dinov2"
    more = {"num_register_tokens": entry.registers} if entry.registers else {}
    settings = {**_settings(entry, attention="eager"), "use_swiglu_ffn": entry.swiglu, **more}
    config = getattr(transformers, f"{kind}Config")(**settings)
    model = _drawn(lambda: getattr(transformers, f"{kind}Model")(config), dtype)
    assert not list(model.buffers()), "buffers would stay uninitialised"

    def follow(ours: Any) -> None:
        model.embeddings.interpolate_pos_encoding = official_position(ours.pos_embed, registers=entry.registers > 0)

    return Oracle(model, _hidden_taps(model, model.layernorm, 1 + entry.registers), follow)


def official_position(pos_embed: torch.Tensor, *, registers: bool) -> Callable[..., torch.Tensor]:
    """Return DINOv2's official interpolation of the position embedding.

    Source: facebookresearch/dinov2, with the hub settings of each family.
    """

    def position(_embeddings: torch.Tensor, height: int, width: int) -> torch.Tensor:
        rows, columns = height // 14, width // 14
        if rows == columns == 37:
            return pos_embed
        native = pos_embed[:, 1:].reshape(1, 37, 37, -1).permute(0, 3, 1, 2)
        settings: dict[str, Any] = {"size": (rows, columns), "antialias": True}
        if not registers:
            settings = {"scale_factor": ((rows + 0.1) / 37, (columns + 0.1) / 37), "antialias": False}
        resized = nn.functional.interpolate(native, mode="bicubic", **settings)  # (1, E, rows, columns)
        return torch.cat([pos_embed[:, :1], resized.permute(0, 2, 3, 1).flatten(1, 2)], dim=1)

    return position


def _dinov3(entry: EncoderEntry, dtype: torch.dtype) -> Oracle:
    from transformers import DINOv3ViTConfig, DINOv3ViTModel
    from transformers.models.dinov3_vit import modeling_dinov3_vit as modeling

    config = DINOv3ViTConfig(
        intermediate_size=4 * entry.width,
        num_register_tokens=entry.registers,
        use_gated_mlp=entry.swiglu,
        hidden_act="silu" if entry.swiglu else "gelu",
        **_settings(entry, attention="sdpa"),
    )
    model = _drawn(lambda: DINOv3ViTModel(config), dtype)
    model.rope_embeddings.inv_freq = 1 / config.rope_theta ** torch.arange(0, 1, 4 * entry.heads / entry.width)
    rounded = modeling.get_patches_center_coordinates

    def follow(ours: Any) -> None:
        """Compute in float64 the angles that transformers rounds to float32."""
        if dtype == torch.float64:
            model.rope_embeddings.inv_freq = 1 / ours.rope_embed.periods
            modeling.get_patches_center_coordinates = lambda h, w, dtype, device: rounded(h, w, torch.float64, device)
        else:
            modeling.get_patches_center_coordinates = rounded

    return Oracle(model, _hidden_taps(model, model.norm, 1 + entry.registers), follow)


def _vit(entry: EncoderEntry, dtype: torch.dtype) -> Oracle:
    from transformers import ViTConfig, ViTModel

    config = ViTConfig(intermediate_size=4 * entry.width, layer_norm_eps=1e-6, **_settings(entry, attention="sdpa"))
    model = _drawn(lambda: ViTModel(config, add_pooling_layer=False), dtype)
    return Oracle(model, _hidden_taps(model, model.layernorm, 1, interpolate_pos_encoding=True))


def _clip(entry: EncoderEntry, dtype: torch.dtype) -> Oracle:
    from transformers import CLIPVisionConfig, CLIPVisionModel

    config = CLIPVisionConfig(
        intermediate_size=4 * entry.width,
        hidden_act="quick_gelu" if entry.quick_gelu else "gelu",
        **_settings(entry, attention="sdpa"),
    )
    model = _drawn(lambda: CLIPVisionModel(config), dtype)
    model.embeddings.position_ids = torch.arange(1 + entry.grid**2)[None]
    return Oracle(model, _hidden_taps(model, model.post_layernorm, 1, interpolate_pos_encoding=True))


FAMILIES: dict[str, Callable[[EncoderEntry, torch.dtype], Oracle]] = {
    "dinov2": _dinov2,
    "dinov3": _dinov3,
    "vit": _vit,
    "clip": _clip,
}
"""First word of an encoder's name -> its model in transformers."""
