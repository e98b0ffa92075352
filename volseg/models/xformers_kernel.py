"""The attention kernel of xFormers, and the CUDA runtime that its library is linked to."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import torch

from volseg.extras import import_extra

CUDA_RUNTIME = "libcudart.so.12"
"""Library that PyPI's xFormers needs; the torch of PyPI brings that of CUDA 13."""
RUNTIME_PACKAGE = "nvidia.cuda_runtime"
"""Package ``nvidia-cuda-runtime-cu12``, whose folder ``lib`` holds it."""


def xformers_kernel() -> Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]:
    """Return the kernel of xFormers for ``(B, heads, N, E)``; it works on ``(B, N, heads, E)``, the swaps are views.

    Raises:
        MissingExtraError: It is not installed, or cannot be imported.

    Source: Lefaudeux et al. 2022, "xFormers", ``xformers.ops.memory_efficient_attention``.
    """
    load_cuda_runtime()
    kernel = import_extra("xformers.ops", "xformers", "model.attention=xformers").memory_efficient_attention

    def xformers(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        mixed: torch.Tensor = kernel(query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2))
        return mixed.transpose(1, 2)

    return xformers


def load_cuda_runtime(library: str = CUDA_RUNTIME, package: str = RUNTIME_PACKAGE) -> bool:
    """Load a library from an installed package, unless the system finds it, and return whether it is loaded.

    Once loaded, it serves all that need a library of its name. The torch of PyPI does the same when it is imported, if
    it finds the package then.

    Args:
        library: Name of the library.
        package: Package with the library in its folder ``lib``.
    """
    try:
        ctypes.CDLL(library)
    except OSError:
        for folder in _folders(package):
            try:
                ctypes.CDLL(str(Path(folder) / "lib" / library))
            except OSError:  # not there, or for another processor
                continue
            return True
        return False
    return True


def library_error() -> str | None:
    """Return why the compiled library of an imported xFormers does not load; ``None`` if it does."""
    error = getattr(sys.modules.get("xformers._cpp_lib"), "_cpp_library_load_exception", None)
    if error is None:
        return None
    while error.__cause__ is not None:  # the first one names the library that is missing
        error = error.__cause__
    return str(error)


def _folders(package: str) -> list[str]:
    """Return the folders of an installed package without importing it; none if it is not installed."""
    try:
        spec = find_spec(package)
    except ModuleNotFoundError:  # of its parent
        return []
    return list(spec.submodule_search_locations or []) if spec is not None else []
