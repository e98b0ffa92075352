"""Write `docs/errors.md`: ``python -m tests.made.bad_inputs``, in a checkout."""

from __future__ import annotations

import logging
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.made.bad_inputs import BAD_INPUTS
from tests.made.bad_inputs.cases import BadInput, message
from tests.made.bad_inputs.page import PAGE, page


def tried(bad_input: BadInput) -> tuple[str, str]:
    """Return the title and the message of a case."""
    with TemporaryDirectory() as folder:
        return bad_input.title, message(bad_input, Path(folder))


if __name__ == "__main__":
    logging.disable()
    text = page({name: [tried(bad_input) for bad_input in cases] for name, cases in BAD_INPUTS.items()})
    Path(__file__).resolve().parents[3].joinpath(PAGE).write_text(text, encoding="utf-8")
