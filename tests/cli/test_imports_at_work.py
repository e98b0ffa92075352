"""What prediction may not import, seen in a process that really predicts."""

from __future__ import annotations

import subprocess
import sys


def test_prediction_imports_neither_monai_nor_torchio() -> None:
    script = """
import sys
import volseg.inference.cohort.run, volseg.inference.predictor, volseg.preprocessing.preprocess
print([name for name in ("monai", "torchio", "lightning_fabric", "omegaconf", "matplotlib") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
