"""Fixtures that several test folders share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.made.inference_fixtures import *  # noqa: F403 (fixtures)

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def data_root() -> Path:
    """Folder of the real scans."""
    if not DATA.is_dir():
        pytest.skip(f"the real scans are not at {DATA}")
    return DATA
