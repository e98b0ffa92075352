"""The model files of a run folder or of a cross-validation, by their names alone."""

from __future__ import annotations

from pathlib import Path

from volseg.errors import ModelFileError
from volseg.io.json_files import read_json
from volseg.io.paths import is_file, is_folder

MODEL_HINT = "give a model.safetensors written by volseg train"
MODEL_NAME, BEST_NAME = "model.safetensors", "model_best.safetensors"
"""Names in a run folder: the averaged weights of the last step, and those that were best on validation."""
CROSSVAL_FILE, FOLD_PREFIX = "crossval.json", "fold_"
"""Names in the folder of a cross-validation: its record, and the beginning of the run folders."""


def model_files_of(path: Path) -> list[Path]:
    """Return the model files: the path itself, the final model of a run folder, or one for each fold.

    Raises:
        ModelFileError: The folder holds no final model, or that of a fold is missing.
    """
    folds = [] if not is_folder(path) or is_file(path / MODEL_NAME) else _folds_of(path)
    if not folds:
        return [model_file_of(path)]
    missing = [fold for fold in folds if not is_file(path / fold / MODEL_NAME)]
    if missing:
        raise ModelFileError(
            "folds of the cross-validation are not trained",
            file=path,
            found=f"no {MODEL_NAME} in {', '.join(missing)}",
            expected=f"a model in {', '.join(folds)}",
            hint="finish them with volseg crossval, or choose the folds of the ensemble: volseg crossval --folds",
        )
    return [path / fold / MODEL_NAME for fold in folds]


def one_model_file(path: Path) -> Path:
    """Return the model file: the path itself, or that of a folder that holds one model.

    Raises:
        ModelFileError: The folder holds none or several.
    """
    files = model_files_of(path)
    if len(files) > 1:
        folders = [str(file.parent) for file in files]
        hint = f"give one of them, for example {folders[0]}"
        raise ModelFileError("the folder holds several models", file=path, found=", ".join(folders), hint=hint)
    return files[0]


def _folds_of(folder: Path) -> list[str]:
    """Return the names of the run folders of an ensemble: those that its record lists, or without one all.

    Raises:
        ModelFileError: The record cannot be read.
    """
    record = folder / CROSSVAL_FILE
    if not is_file(record):
        names = [entry.name for entry in folder.iterdir() if is_folder(entry)]
        numbers = [name.removeprefix(FOLD_PREFIX) for name in names if name.startswith(FOLD_PREFIX)]
        return [f"{FOLD_PREFIX}{number}" for number in sorted(filter(str.isdecimal, numbers), key=int)]
    values = read_json(record, "cross-validation", ModelFileError)
    members = values.get("members") if isinstance(values, dict) else None
    if not isinstance(members, list) or not all(type(number) is int for number in members):
        found, hint = f"members: {members}", "restore it from a copy, or run volseg crossval again"
        raise ModelFileError("this is not the record of a cross-validation", file=record, found=found, hint=hint)
    return [f"{FOLD_PREFIX}{number}" for number in members]


def model_file_of(path: Path) -> Path:
    """Return the model file: the path itself, or for a run folder its final model.

    Raises:
        ModelFileError: The folder holds no final model.
    """
    if not is_folder(path):
        return path
    if is_file(path / MODEL_NAME):
        return path / MODEL_NAME
    best = path / BEST_NAME
    raise ModelFileError(
        "the folder holds no trained model",
        file=path,
        expected=MODEL_NAME,
        hint=f"training has not finished; give {best} to use it nevertheless" if is_file(best) else MODEL_HINT,
    )
