"""The page `docs/errors.md`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

PAGE = "docs/errors.md"
INTRODUCTION = """# Errors

What users get wrong, and the message that each gets. `python -m tests.made.bad_inputs` writes this page from
`tests/made/bad_inputs/`, and the tests compare every message with it.

A message says what is wrong, and then

| line | meaning |
| --- | --- |
| `file` | the file or folder concerned |
| `found` | what is there |
| `expected` | what is valid |
| `hint` | how to fix it |

Commands print it to stderr and return exit code 2; one bad scan of many fails alone, and the code is 1
([Commands](design.md#contract-commands)). From Python it is a `volseg.errors.VolsegError`
([Errors in Python](python.md#errors)). `volseg plan DATASET --check-only` lists everything that is wrong with a data
set at once; [Checks](checks.md) holds the kinds of these findings. All examples were run in a folder called `/data`.
"""


def entry(title: str, message: str) -> str:
    """Return the part of the page about one case: its title and its message."""
    return f"### {title}\n\n```text\n{message}\n```\n"


def page(sections: Mapping[str, Iterable[tuple[str, str]]]) -> str:
    """Return the page.

    Args:
        sections: Section -> titles and messages of its cases.
    """
    anchors = (f"[{name}](#{name.lower().replace(',', '').replace(' ', '-')})" for name in sections)
    parts = [INTRODUCTION, " · ".join(anchors) + "\n"]
    for name, cases in sections.items():
        parts += [f"## {name}\n", *(entry(title, message) for title, message in cases)]
    return "\n".join(parts)
