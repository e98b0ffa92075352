"""Free memory of a device, and float32 in full."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from volseg.device import free_memory, full_float32

MEMINFO = "MemTotal: 2000 kB\nMemAvailable: 1000 kB\n"


def make_system(folder: Path, cgroup: str, files: dict[str, str]) -> Path:
    for name, text in {"proc/meminfo": MEMINFO, "proc/self/cgroup": cgroup, **files}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="ascii")
    return folder


@pytest.mark.parametrize(
    ("cgroup", "files", "expected"),
    [
        ("0::/\n", {}, 1000 * 1024),
        (
            "0::/job/step\n",
            {
                "sys/fs/cgroup/job/memory.max": "500000",
                "sys/fs/cgroup/job/memory.current": "300000",
                "sys/fs/cgroup/job/memory.stat": "anon 100000\ninactive_file 100000\n",
                "sys/fs/cgroup/job/step/memory.max": "max",
                "sys/fs/cgroup/job/step/memory.current": "300000",
                "sys/fs/cgroup/job/step/memory.stat": "inactive_file 0\n",
            },
            300000,
        ),
        (
            "3:cpu:/job\n5:memory:/job\n",
            {
                "sys/fs/cgroup/memory/job/memory.limit_in_bytes": "400000",
                "sys/fs/cgroup/memory/job/memory.usage_in_bytes": "500000",
                "sys/fs/cgroup/memory/job/memory.stat": "inactive_file 0\n",
            },
            0,
        ),
    ],
    ids=["no limit", "version 2, of the parent", "version 1, exceeded"],
)
def test_free_memory_respects_the_limits_of_control_groups(
    cgroup: str, files: dict[str, str], expected: int, tmp_path: Path
) -> None:
    system = make_system(tmp_path, cgroup, files)
    assert free_memory(torch.device("cpu"), system) == int(0.9 * expected)


def test_free_memory_is_not_known_without_proc(tmp_path: Path) -> None:
    assert free_memory(torch.device("cpu"), tmp_path) is None


def tf32() -> tuple[bool, bool]:
    return torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32


def test_float32_is_full_within_a_block_and_as_it_was_afterwards() -> None:
    before = tf32()
    try:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = True, True
        with full_float32():
            assert tf32() == (False, False)
        assert tf32() == (True, True)
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


@pytest.mark.skipif(not hasattr(torch.backends.cudnn, "conv"), reason="needs torch's newer settings of precision")
def test_the_newer_settings_of_a_program_stay() -> None:
    conv = torch.backends.cudnn.conv
    before = conv.fp32_precision
    try:
        conv.fp32_precision = "ieee"  # rnn has tf32: the older setting cannot be read
        with full_float32():
            assert conv.fp32_precision == "ieee"
        assert conv.fp32_precision == "ieee"
    finally:
        conv.fp32_precision = before
