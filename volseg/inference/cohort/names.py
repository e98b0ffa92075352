"""Names of the files that a prediction writes."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from volseg.config.mask_formats import MASK_ENDINGS, MASK_FORMATS, UNWRITTEN, ending_of
from volseg.errors import ConfigError, OutputError, suggestion

LONGEST_NAME = 200
"""Most bytes of a case or class in a file name; file systems allow 255 with the suffix."""


def output_place(output: Path, mask_format: str | None, *, one_file: bool) -> tuple[Path, str | None]:
    """Return the folder of the masks and, if the output is a file, its name.

    An output with the ending of a mask (``x.nii.gz``, ``x.seg.nrrd`` ...) is a file, unless it is an existing folder.

    Args:
        output: The output that was requested.
        mask_format: The format that was requested.
        one_file: Whether one mask is going to be written.

    Raises:
        ConfigError: There is no such format, it is not that of the file's ending, no mask is written with this ending,
            or several masks are going to be written.
    """
    if mask_format is not None and mask_format not in MASK_FORMATS:
        raise ConfigError(
            "this format of masks does not exist",
            found=mask_format,
            expected=", ".join(MASK_FORMATS),
            hint=suggestion(mask_format, MASK_FORMATS),
        )
    ending = ending_of(output.name)
    if output.is_dir() or (ending is None and ending_of(output.name, UNWRITTEN) is None):
        return output, None
    if ending is None:
        raise ConfigError(
            "masks are not written in files with this ending",
            found=output.name,
            expected=", ".join(MASK_ENDINGS),
            hint="give one of these endings, or a folder",
        )
    if mask_format is not None and ending != MASK_FORMATS[mask_format]:
        raise ConfigError(
            "the ending of the output file is not that of the format",
            found=f"{output.name} and the format {mask_format}",
            expected=MASK_FORMATS[mask_format],
        )
    if not one_file:
        raise ConfigError(
            "the output is one file, but several would be written",
            found=f"{output}, with several scans, one file per class, or a shard",
            hint="give a folder as the output",
        )
    return output.parent, output.name


def check_class_names(labels: Mapping[str, int]) -> None:
    """Check that class names are valid file names, before anything is predicted.

    Raises:
        OutputError: A class name is not a valid file name.
    """
    invalid = [name for name, value in labels.items() if value != 0 and not is_file_name(name)]
    if invalid:
        raise OutputError(
            "class names that are not valid file names", found=", ".join(invalid), hint="leave --split-classes out"
        )


def is_file_name(name: str) -> bool:
    """Return whether a name can be used for a file: not hidden, without separators, and not too long."""
    return bool(name) and not (
        set(name) & set("/\\\0") or name.startswith(".") or len(os.fsencode(name)) > LONGEST_NAME
    )
