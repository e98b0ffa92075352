"""Devices that a network runs on, their precision, full float32 and deterministic algorithms."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from volseg.errors import ConfigError

DEVICES = ("cpu", "cuda", "mps")
FREE_SHARE = 0.9
"""Share of the free memory that an estimate may take."""
CGROUPS = (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes"))
"""Files with limit and use of a control group, of versions 2 and 1."""


def choose_device(name: str | torch.device = "auto") -> torch.device:
    """Return the named device; ``auto`` is the fastest available one.

    Args:
        name: ``auto``, ``cpu``, ``cuda``, ``cuda:1``, ``mps``, or a device.

    Raises:
        ConfigError: The device is not available.
    """
    if str(name) == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        if device.type not in DEVICES:
            raise RuntimeError("not a device that volseg runs on")
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(
            "the device is not available", found=name, expected="auto, cpu, cuda, cuda:1, mps", hint="use device cpu"
        ) from error
    return device


def has_native_bf16(device: torch.device) -> bool:
    """Return whether the hardware computes in bf16: most GPUs, and CPUs with Intel's AMX. Emulation is far slower."""
    if device.type == "cpu":
        return hasattr(torch.cpu, "get_capabilities") and bool(torch.cpu.get_capabilities().get("amx_bf16"))
    return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)


def prediction_dtype(precision: str, device: torch.device) -> torch.dtype:
    """Return the precision of the networks in prediction.

    Args:
        precision: ``32``, ``bf16``, or ``auto``: bf16 on GPUs that compute in it; float32 on all CPUs, for identical
            masks.
        device: Where the networks run.

    Raises:
        ConfigError: The device does not compute in bf16.
    """
    native = has_native_bf16(device)
    if precision == "bf16" and not native:
        hint = "use precision auto or 32"
        raise ConfigError("the device does not compute in bf16", found=f"precision bf16 on {device}", hint=hint)
    reduced = precision == "bf16" or (precision == "auto" and native and device.type != "cpu")
    return torch.bfloat16 if reduced else torch.float32


def training_dtype(precision: str, device: torch.device) -> torch.dtype:
    """Return the precision of the network's multiplications in training.

    On a CPU without AMX torch's bf16 convolutions are slow, and their weight gradients can be uninitialised memory
    (volumes of two slices, `benchmarks/results/bf16_convolution`), so bf16 is refused there.

    Args:
        precision: ``32``, ``bf16``, or ``auto``: bf16 only on hardware that computes in it.
        device: Where the network runs.

    Raises:
        ConfigError: bf16 on a CPU without AMX.
    """
    native = has_native_bf16(device)
    if precision == "bf16" and device.type == "cpu" and not native:
        raise ConfigError(
            "precision=bf16 cannot be used on this CPU",
            found="a processor without AMX, on which gradients in bf16 can be wrong",
            hint="set precision=auto or precision=32",
        )
    return torch.bfloat16 if precision == "bf16" or (precision == "auto" and native) else torch.float32


@contextmanager
def full_float32() -> Iterator[None]:
    """Compute what is float32 in a block with all its bits on every GPU: cuDNN's default for convolutions is TF32.

    TF32 keeps 10 bits of the mantissa, too few for logits within 1e-3 of those of a CPU. Nothing is slower by default,
    because GPUs with TF32 compute the networks in bf16. A program that uses torch's newer settings of precision, which
    cannot be read together with these, keeps its own.
    """
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    try:
        before = cudnn.allow_tf32, matmul.allow_tf32
    except RuntimeError:  # the newer settings differ by operation
        yield
        return
    cudnn.allow_tf32, matmul.allow_tf32 = False, False
    try:
        yield
    finally:
        cudnn.allow_tf32, matmul.allow_tf32 = before


def free_memory(device: torch.device, system: Path = Path("/")) -> int | None:
    """Return the bytes that are free on a device, less a tenth; ``None`` where that is not known.

    On a CPU that is what Linux counts as available, or what the limits of the process's control groups leave. On a GPU,
    freed blocks of torch are free, but not those within a recorded step, which only it can use.

    Args:
        device: The device.
        system: Folder of ``proc`` and ``sys``.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device) - within_recordings(device)
        return int(FREE_SHARE * (free + unused))
    if device.type != "cpu":
        return None
    try:
        lines = (system / "proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    available = [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    amounts = [*available, *_left_by_control_groups(system)]
    return int(FREE_SHARE * max(0, min(amounts))) if amounts else None


def within_recordings(device: torch.device) -> int:
    """Return the bytes of recorded steps that no tensor holds; only torch's own allocator tells them apart."""
    if torch.cuda.get_allocator_backend() != "native":
        return 0
    index = torch.cuda.current_device() if device.index is None else device.index
    segments = torch.cuda.memory_snapshot()  # type: ignore[no-untyped-call]
    return sum(
        segment["total_size"] - segment["allocated_size"]
        for segment in segments
        if segment["device"] == index and tuple(segment["segment_pool_id"]) != (0, 0)
    )


def total_memory() -> int:
    """Return the bytes of the machine's memory, free or not."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _left_by_control_groups(system: Path) -> Iterator[int]:
    """Yield what the limit of each control group of this process leaves; cached files count as free."""
    try:
        lines = (system / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, name = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        root = system / "sys/fs/cgroup" / controllers
        group = root / name.strip("/")
        for folder in (group, *group.parents):
            if not folder.is_relative_to(root):
                break
            for limit, used in CGROUPS:
                try:
                    most = int((folder / limit).read_text(encoding="ascii"))  # "max" is none
                    now = int((folder / used).read_text(encoding="ascii"))
                    cached = (folder / "memory.stat").read_text(encoding="ascii").split()
                    yield most - now + int(cached[cached.index("inactive_file") + 1])
                except (OSError, ValueError):
                    continue


@contextmanager
def deterministic_algorithms(enabled: bool) -> Iterator[None]:
    """Let torch choose deterministic algorithms in a block, so that a GPU repeats a computation bitwise.

    An operation that has none on the device runs nevertheless, and torch names it in a warning. A CPU repeats its
    results without this. cuBLAS reads its setting from the environment when it is first used, which must be later.

    Args:
        enabled: Otherwise nothing changes.
    """
    if not enabled:
        yield
        return
    cudnn = torch.backends.cudnn
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    flags = cudnn.deterministic, cudnn.benchmark
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    cudnn.deterministic, cudnn.benchmark = True, False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        cudnn.deterministic, cudnn.benchmark = flags
