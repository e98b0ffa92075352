"""The entry point ``volseg COMMAND ...``: parses, runs the command, and turns errors into messages and exit codes."""

from __future__ import annotations

import argparse
import errno
import io
import logging
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from types import FrameType

from volseg.errors import VolsegError
from volseg.version import __version__

COMMANDS = {
    "plan": "check a data set and write its plan",
    "train": "train a model",
    "pretrain": "pretrain the encoder on scans without labels",
    "crossval": "train all folds, choose postprocessing, make an ensemble",
    "describe": "print the cost of the parts of a network",
    "settings": "print the settings of a configuration",
    "predict": "write masks for scans",
    "evaluate": "score masks against references",
    "features": "draw what a frozen encoder sees in slices of scans",
    "probe": "classify scans or slices from frozen features",
    "convert": "write a data set in any layout as nnU-Net v2 raw",
    "download": "download a public data set by name",
    "cache": "list or remove preprocessed cases",
    "phantom": "generate a small labelled CT data set",
}
PIPE_CLOSED = 13
"""Number of the signal that ends other programs then (SIGPIPE, which Windows lacks)."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        0 if every case succeeded, 1 if some failed, 2 if nothing could be done or an unexpected exception ended it, and
        141 if the reader of the output ended first.
    """
    parser = argparse.ArgumentParser(prog="volseg", description="3D segmentation with a 2D foundation model.")
    parser.add_argument("--version", action="version", version=f"volseg {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, summary in COMMANDS.items():
        module = import_module(f"volseg.cli.{name}")
        command = commands.add_parser(name, help=summary, description=module.__doc__)
        module.add_arguments(command)
        command.add_argument("--debug", action="store_true", help="show the traceback of an error")
        command.set_defaults(run=module.run)
    args = _parse(parser, argv)
    os.environ.pop("MPLBACKEND", None)  # notebooks set it for commands too; with a missing backend matplotlib fails
    for stream in (sys.stdout, sys.stderr):  # a file name may hold what the terminal's encoding does not
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    with suppress(ValueError):  # outside of the main thread
        signal.signal(signal.SIGTERM, _stop)
    logging.getLogger("pydicom").setLevel(logging.CRITICAL)  # what matters of a file becomes an error
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", stream=sys.stderr)
    try:
        code = int(args.run(args))
        if sys.stdout is not None:  # it is None where it was closed
            sys.stdout.flush()
        return code
    except VolsegError as error:
        if args.debug:
            traceback.print_exc()
        elif not error.shown_elsewhere:
            print(f"error: {_with_origin(error, args)}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader of the output, such as head, has ended
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + PIPE_CLOSED
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except Exception as error:  # Python's own exit code 1 would say that some cases failed
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:  # everything else is written by atomic_file
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            print(f"error: the output cannot be written: {error.strerror}", file=sys.stderr)
            return 2
        traceback.print_exc()
        print(f"error: unexpected {type(error).__name__}; please report it with the lines above", file=sys.stderr)
        return 2


def _with_origin(error: VolsegError, args: argparse.Namespace) -> VolsegError:
    """Return an error with the place of the setting that it names: the command line, or a line of a file."""
    from volseg.config.origin import with_origin

    resumed = getattr(args, "resume", False)
    stored = f"{resumed}/config.yaml" if isinstance(resumed, str) else None
    return with_origin(error, getattr(args, "config", None) or stored, getattr(args, "overrides", ()))


def _stop(number: int, frame: FrameType | None) -> None:
    """End like an error, so that no incomplete file remains; batch systems stop jobs by SIGTERM."""
    raise SystemExit(128 + number)


def _parse(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse arguments; ``key=value`` settings may stand anywhere between options, unlike in argparse."""
    args, rest = parser.parse_known_args(argv)
    if rest and (not hasattr(args, "overrides") or any(item.startswith("-") for item in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        args.overrides = [*args.overrides, *rest]
    return args


if __name__ == "__main__":
    sys.exit(main())
