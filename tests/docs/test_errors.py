"""`docs/errors.md` shows the message of every case, and every message says enough."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.made.bad_inputs import BAD_INPUTS
from tests.made.bad_inputs.cases import BadInput, message
from tests.made.bad_inputs.page import PAGE, entry, page

TEXT = (Path(__file__).resolve().parents[2] / PAGE).read_text(encoding="utf-8")
CASES = [pytest.param(case, id=f"{section}: {case.title}") for section, cases in BAD_INPUTS.items() for case in cases]
NOUNS = "case|class|channel|file|scan|slice|frame|label|voxel|row|column|object|value"
PLURAL_OF_ONE = rf"(?<![\w.,])1 (?:\w+ )?(?:{NOUNS})(?:e?s\b|\()"
AGAIN = "run python -m tests.made.bad_inputs to write the page again"


@pytest.mark.parametrize("bad_input", CASES)
def test_a_message_names_what_is_wrong_and_says_what_to_do(bad_input: BadInput, tmp_path: Path) -> None:
    text = message(bad_input, tmp_path)
    assert re.match(r"(error|failed: \w+ \w+|\w+ failed): (?!unexpected)\S", text)
    assert bad_input.names in text
    assert not re.search(PLURAL_OF_ONE, text)
    assert re.search(r"\n +(hint|expected): \S", text)
    assert str(Path.home()) not in text
    assert entry(bad_input.title, text) in TEXT, AGAIN


def test_the_page_holds_these_cases_in_this_order_and_nothing_else() -> None:
    messages = iter(re.findall(r"^```text\n(.*?)\n```$", TEXT, re.DOTALL | re.MULTILINE))
    expected = page({name: [(case.title, next(messages, "")) for case in cases] for name, cases in BAD_INPUTS.items()})
    assert expected == TEXT, AGAIN
    titles = re.findall(r"^###? .+$", TEXT, re.MULTILINE)
    assert len(titles) == len(set(titles))
