"""Worker processes end with the command: on SIGTERM, on Ctrl-C, and when it is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tests.made.datasets import write_dataset

COMMAND = '''
"""Runs volseg; every worker writes its number and then works for a minute."""
import os, sys, time
from multiprocessing import parent_process
from pathlib import Path
from volseg.evaluation import case
from volseg.planning import fingerprint

inspect_case = fingerprint.inspect_case

def hold(*arguments, **settings):
    if parent_process() is None:  # the first case is measured in the main process
        time.sleep(0.7)
        return inspect_case(*arguments, **settings)
    Path(sys.argv[1], str(os.getpid())).touch()
    time.sleep(60)

case.read_case_mask = fingerprint.inspect_case = hold
if __name__ == "__main__":
    from volseg.cli.main import main
    sys.exit(main(sys.argv[2:]))
'''
LOADER = '''
"""Loads samples as training does; a worker writes its number and then works for a minute."""
import os, sys, time
from pathlib import Path
from torch.utils.data import DataLoader
from volseg.training.stop import end_with_parent_only

class Samples:
    def __len__(self):
        return 4
    def __getitem__(self, index):
        Path(sys.argv[1], str(os.getpid())).touch()
        time.sleep(60)

if __name__ == "__main__":
    next(iter(DataLoader(Samples(), num_workers=2, worker_init_fn=end_with_parent_only)))
'''
CASES = 20


@pytest.fixture
def commands(tmp_path: Path) -> dict[str, list[str]]:
    label = np.zeros((4, 4, 4), dtype=np.uint8)
    label[1, 1, 1] = 1
    root = write_dataset(tmp_path / "data", [label.astype(np.float32)] * CASES, [label] * CASES, names=("b", "organ"))
    masks, description = str(root / "labelsTr"), str(root / "dataset.json")
    scored = ["--pred", masks, "--ref", masks, "--dataset", description, "--out", str(tmp_path / "out")]
    return {
        "evaluate": ["evaluate", *scored, "--workers", "2"],
        "plan": ["plan", str(root), "--check-only", "--workers", "2"],
    }


@pytest.mark.parametrize(
    ("command", "number", "code"),
    [
        ("evaluate", signal.SIGTERM, 143),
        ("evaluate", signal.SIGINT, 130),
        ("evaluate", signal.SIGKILL, -9),
        ("plan", signal.SIGTERM, 143),
    ],
)
def test_workers_end_with_the_command(
    command: str, number: signal.Signals, code: int, commands: dict[str, list[str]], tmp_path: Path
) -> None:
    script, started = tmp_path / "hold.py", tmp_path / "workers"
    script.write_text(COMMAND)
    started.mkdir()
    process = subprocess.Popen(
        [sys.executable, str(script), str(started), *commands[command]],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL) and None,  # a background job ignores it
    )
    wait_until(lambda: len(list(started.iterdir())) == 2 or process.poll() is not None)
    workers = [int(path.name) for path in started.iterdir()]
    process.send_signal(number)
    _, errors = process.communicate(timeout=20)  # the workers hold stderr too: it ends with the last of them
    assert process.returncode == code, errors
    assert "Traceback" not in errors
    assert len(workers) == 2
    wait_until(lambda: not any(is_running(worker) for worker in workers))


def test_workers_of_a_loader_end_when_training_is_killed(tmp_path: Path) -> None:
    script, started = tmp_path / "load.py", tmp_path / "workers"
    script.write_text(LOADER)
    started.mkdir()
    process = subprocess.Popen([sys.executable, str(script), str(started)], stderr=subprocess.PIPE, text=True)
    wait_until(lambda: len(list(started.iterdir())) == 2 or process.poll() is not None)
    workers = [int(path.name) for path in started.iterdir()]
    process.kill()
    _, errors = process.communicate(timeout=20)  # the workers hold stderr too
    assert len(workers) == 2, errors
    wait_until(lambda: not any(is_running(worker) for worker in workers))


def wait_until(condition: object, limit_s: float = 30) -> None:
    end_s = time.monotonic() + limit_s
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < end_s
        time.sleep(0.05)


def is_running(number: int) -> bool:
    """Return whether a process exists and is no zombie, which only waits for its parent to ask for its exit code."""
    try:
        os.kill(number, 0)
        status = Path(f"/proc/{number}/stat")
        return not (status.exists() and status.read_text().rpartition(")")[2].split()[0] == "Z")
    except (ProcessLookupError, FileNotFoundError):
        return False
