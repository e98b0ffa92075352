"""Optional libraries, imported when a setting needs them; the error names the extra to install."""

from __future__ import annotations

import importlib
from types import ModuleType

from volseg.errors import MissingExtraError


def import_extra(module: str, extra: str, setting: str) -> ModuleType:
    """Import a library that is installed by an extra.

    Args:
        module: Module to import, for example ``xformers.ops``.
        extra: Extra of this package that installs it.
        setting: Setting that needs it, for example ``model.attention=xformers``.

    Raises:
        MissingExtraError: It is not installed, or cannot be loaded here.
    """
    try:
        return importlib.import_module(module)
    except Exception as error:  # a library that was compiled for another version of torch raises anything
        state = "is not installed" if isinstance(error, ModuleNotFoundError) else "cannot be loaded"
        raise MissingExtraError(
            f"{setting} needs a library that {state}",
            found=error if isinstance(error, ImportError | OSError) else f"{type(error).__name__}: {error}",
            expected=f"the extra volseg[{extra}]",
            hint=f"pip install 'volseg[{extra}]', or choose another value than {setting}",
        ) from error
