from __future__ import annotations

import pytest

from volseg.config.sizes import format_size, parse_size
from volseg.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("4GB", 4 * 10**9),
        ("1.5GiB", 3 * 2**29),
        ("500 mb", 5 * 10**8),
        ("64KB", 64_000),
        ("8G", 8 * 10**9),
        ("2TiB", 2**41),
        ("1.5 tb", 15 * 10**11),
        ("100B", 100),
        (" 4000000000 ", 4 * 10**9),
    ],
)
def test_sizes_as_people_write_them(text: str, expected: int) -> None:
    assert parse_size(text) == expected


@pytest.mark.parametrize("text", ["", "GB", "-4GB", "four GB", "4 G B", "4 GBit", "0GB", "0", "0.5", "1e9B", "4,5GB"])
def test_other_texts_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"for example 4GB, 1\.5GiB or 500MB"):
        parse_size(text)


@pytest.mark.parametrize("text", ["8", " 1.5 ", "999999"])
def test_a_small_number_without_a_unit_is_refused(text: str) -> None:
    """Other programs take 8 for gigabytes (nnU-Net) or megabytes (Slurm)."""
    with pytest.raises(ConfigError, match=f"no unit(.|\n)*hint: give the unit: {text.strip()}GB"):
        parse_size(text)


def test_sizes_in_messages() -> None:
    assert [format_size(size) for size in (7, 4_300_000, 2e9, 1.5e13)] == ["7 bytes", "4.3 MB", "2 GB", "15 TB"]
