"""Fixtures that several test folders share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.made.inference_fixtures import *  # noqa: F403 (fixtures)

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def data_root() -> Path:
    """Folder of the real scans."""
    if not DATA.is_dir():
        pytest.skip(f"the real scans are not at {DATA}")
    return DATA


@pytest.fixture(scope="module")
def no_pictures() -> Iterator[None]:
    """Pictures stay empty: in runs of a few steps they take more time than all the rest."""

    from matplotlib.figure import Figure

    def savefig(figure: Figure, file: Any, *, format: str, **_: Any) -> None:
        if format == "svg":
            file.write("<svg></svg>")
        else:
            file.write(b"no picture")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", savefig)
        yield
