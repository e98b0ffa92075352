"""Key names of published weight files, converted to an encoder's own.

The conversion renames and concatenates tensors and computes nothing, so it is exact. Each encoder's module has the
tables of the names that it reads.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

from volseg.models.contracts import State

logger = logging.getLogger(__name__)

PATCH_WEIGHT = "patch_embed.proj.weight"
_CHUNKED_BLOCK = re.compile(r"^blocks\.\d+\.(\d+)\.")


@dataclass(frozen=True, kw_only=True)
class KeyNames:
    """How one library names the tensors of an encoder.

    Attributes:
        patch_weight: Its key of the patch embedding, which shows that a file has these names, and their prefix.
        renamed: Its part of a key -> the encoder's own; applied in order.
        joined: The encoder's own part of a key -> the library's parts of its rows, in order; several alternatives.
        ignored: Starts of the keys of tensors that are not part of the encoder.
    """

    patch_weight: str = PATCH_WEIGHT
    renamed: Mapping[str, str] = field(default_factory=dict)
    joined: Mapping[str, Sequence[Sequence[str]]] = field(default_factory=dict)
    ignored: tuple[str, ...] = ()


def own_names(state: State, libraries: Sequence[KeyNames]) -> dict[str, torch.Tensor]:
    """Return the encoder's tensors of a state dict under its own names.

    The key of the patch embedding shows the library and the encoder's prefix. The prefix is removed. Tensors without it
    (a classifier, a projection head, a student beside its teacher) and those that the library's names list as ignored
    are skipped with a message in the log. Unknown keys are kept, so that the strict check that follows names them.

    Args:
        state: Tensors by name, with or without a prefix.
        libraries: The names that the encoder reads.

    Returns:
        A new dict; tensors that were not concatenated are shared with ``state``.
    """
    names, prefix = _names_and_prefix(state, libraries)
    encoder, skipped = {}, set()
    for key, value in state.items():
        own = key.removeprefix(prefix)
        if not key.startswith(prefix) or own.startswith(names.ignored):
            skipped.add(key.split(".")[0] if not key.startswith(prefix) else prefix + own.split(".")[0])
        else:
            encoder[_CHUNKED_BLOCK.sub(r"blocks.\1.", own)] = value
    if skipped:
        logger.info("read from the weight file: %s*; skipped: %s", prefix, ", ".join(sorted(skipped)))
    return _renamed_and_joined(encoder, names)


def _names_and_prefix(state: State, libraries: Sequence[KeyNames]) -> tuple[KeyNames, str]:
    """Return the names of a file and the prefix of its encoder; of several encoders the teacher's."""
    matches = [
        (names, key.removesuffix(names.patch_weight))
        for key in state
        for names in libraries
        if key == names.patch_weight or key.endswith(f".{names.patch_weight}")
    ]
    if len(matches) > 1:
        matches = [match for match in matches if "teacher" in match[1]]
    return matches[0] if len(matches) == 1 else (KeyNames(), "")


def _renamed_and_joined(state: State, names: KeyNames) -> dict[str, torch.Tensor]:
    joined, rest = {}, dict(state)
    for own, alternatives in names.joined.items():
        for parts in alternatives:
            for key in [key for key in rest if f".{parts[0]}." in key]:
                keys = [key.replace(f".{parts[0]}.", f".{part}.") for part in parts]
                if all(part in rest for part in keys):
                    tensors = [rest.pop(part) for part in keys]
                    joined[_renamed(key.replace(f".{parts[0]}.", f".{own}."), names)] = torch.cat(tensors)
    return joined | {_renamed(key, names): value for key, value in rest.items()}


def _renamed(key: str, names: KeyNames) -> str:
    for theirs, own in names.renamed.items():
        key = re.sub(rf"(^|\.){re.escape(theirs)}(\.|$)", rf"\g<1>{own}\g<2>", key)
    return key
