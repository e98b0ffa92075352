"""Print the settings of a configuration with type, default and meaning."""

from __future__ import annotations

import argparse
import textwrap


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("word", nargs="?", default="", metavar="WORD", help="only settings that contain this word")


def run(args: argparse.Namespace) -> int:
    """Print the settings; an error if none contains the word."""
    from volseg.config.reference import settings
    from volseg.errors import ConfigError, suggestion
    from volseg.planning.settings import plan_settings

    rows = [*settings(args.word), *plan_settings(args.word)]
    if not rows:
        names = [one.key.rpartition(".")[2] for one in (*settings(), *plan_settings())]
        similar = suggestion(args.word.rpartition(".")[2], names)
        hint = f"did you mean {similar}?" if similar else "volseg settings lists all"
        raise ConfigError("no setting contains this word", found=args.word, hint=hint)
    for one in rows:
        print(f"{one.key} ({one.type}, default {one.default})")
        print(textwrap.fill(one.meaning, 100, initial_indent="    ", subsequent_indent="    "))
    return 0
