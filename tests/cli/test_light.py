"""Start-up stays light: nothing heavy is imported before it is needed."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = ("torch", "monai", "lightning_fabric", "matplotlib", "scipy", "SimpleITK")


@pytest.mark.parametrize(
    "code",
    [
        "import volseg",
        "import volseg.metrics",
        "from volseg.cli.main import main; main(['--help'])",
        "from volseg.cli.main import main; main(['train', '--help'])",
        "from volseg.cli.main import main; main(['pretrain', '--help'])",
        "from volseg.cli.main import main; main(['crossval', '--help'])",
        "from volseg.cli.main import main; main(['predict', '--help'])",
        "from volseg.cli.main import main; main(['evaluate', '--help'])",
        "from volseg.cli.main import main; main(['probe', '--help'])",
        "from volseg.cli.main import main; main(['describe', '--help'])",
    ],
)
def test_nothing_heavy_is_imported(code: str) -> None:
    script = f"""
import sys
try:
    {code}
except SystemExit as stop:
    assert stop.code == 0
print("HEAVY:", [name for name in {HEAVY!r} if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "HEAVY: []"
