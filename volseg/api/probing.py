"""Frozen features of slices: pictures, and classification of scans or slices."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from volseg.api.arguments import PathLike, check_overrides, check_type

if TYPE_CHECKING:
    from volseg.config.schema import Config
    from volseg.parallel import StageProgress
    from volseg.probing.labels import Labels
    from volseg.probing.probe import ProbeResult
    from volseg.probing.scans import ScanSet

BESIDE_MODEL = ("device", "seed")
"""Settings that may stand beside a trained model."""


def features(
    scans: PathLike,
    output: PathLike,
    *,
    model: PathLike | None = None,
    config: PathLike | Mapping[str, Any] | Config | None = None,
    overrides: Sequence[str] = (),
    slices: int = 6,
    fit: str = "all",
    progress: StageProgress | None = None,
) -> list[Path]:
    """Draw slices of scans, and the first three principal components of their patch tokens as colours.

    Args:
        scans: A scan, a folder of scans, or a ``.txt`` that lists one scan a line, as for :func:`volseg.predict`.
        output: Folder of the pictures ``SCAN.png`` and of ``features.json``.
        model: A model file or run folder, whose encoder and preprocessing are used.
        config: Instead of it, a configuration of the encoder: YAML file, name, nested mapping or configuration.
        overrides: ``key=value`` strings, such as ``model.encoder=dinov2_b14`` and ``model.weights=official``; beside a
            model, ``device`` and ``seed`` alone. Where no ``config`` is given, ``model.adjacent_slices`` is 1.
        slices: Most slices of a scan, evenly spaced.
        fit: Fit the components to the shown slices of ``all`` scans, or of each ``scan`` alone.
        progress: Called with a stage (``preprocess``, ``encode``) and the number of finished and of all scans.

    Returns:
        The files that were written.

    Raises:
        ConfigError: A setting is invalid, or there is no encoder.
        DataError: There are no scans, or some cannot be used.
        ModelFileError: The model or the weights cannot be used.
        OutputError: A file cannot be written.
    """
    from volseg.parallel import stage_progress

    settings = _settings(scans, output, model, config, overrides)

    from volseg.probing.pictures import write_features

    with _scans(scans, Path(output), model, settings, None, progress) as found:
        work = stage_progress(progress, "encode")
        return write_features(found, Path(output), slices=slices, fit=fit, progress=work)


def probe(
    scans: PathLike,
    labels: PathLike,
    output: PathLike,
    *,
    model: PathLike | None = None,
    config: PathLike | Mapping[str, Any] | Config | None = None,
    overrides: Sequence[str] = (),
    slices: int = 32,
    progress: StageProgress | None = None,
) -> ProbeResult:
    """Classify scans or slices from frozen features: k nearest neighbours and logistic regression.

    The feature of a slice is its class token, or the mean of its patch tokens where the encoder has none; that of a
    scan the mean over slices. Test parts are the folds of the table, or five folds, stratified by class and grouped by
    patient. k and the regularisation are chosen on inner folds of each training part. Intervals are of a seeded
    bootstrap over patients.

    Args:
        scans: As for :func:`features`.
        labels: CSV with the columns ``case`` and ``label``, and optionally ``slice``, ``patient``, and ``fold`` or
            ``split``; see `volseg.probing.labels.read_labels`.
        output: Folder of ``probe.json``, ``predictions.csv`` and ``probe.md``.
        model: As for :func:`features`.
        config: As for :func:`features`.
        overrides: As for :func:`features`; ``seed`` is also that of folds and bootstrap.
        slices: Most slices of a scan; where slices are labelled, these are used.
        progress: As for :func:`features`.

    Raises:
        ConfigError: A setting is invalid, or there is no encoder.
        DataError: The table is invalid, labels and scans do not belong together, some scans cannot be used, or a class
            has too few patients.
        MissingExtraError: scikit-learn is not installed.
        ModelFileError: The model or the weights cannot be used.
        OutputError: A file cannot be written.
    """
    from volseg.parallel import stage_progress
    from volseg.probing.labels import read_labels

    check_type("labels", labels, str, Path)
    settings = _settings(scans, output, model, config, overrides)
    table = read_labels(Path(labels))

    from volseg.probing.classify import check_library
    from volseg.probing.probe import run_probe

    check_library()
    with _scans(scans, Path(output), model, settings, table, progress) as found:
        work = stage_progress(progress, "encode")
        return run_probe(found, table, Path(output), slices=slices, seed=settings.seed, progress=work)


def _settings(
    scans: PathLike,
    output: PathLike,
    model: PathLike | None,
    config: PathLike | Mapping[str, Any] | Config | None,
    overrides: Sequence[str],
) -> Config:
    """Return the configuration of the encoder, or of device and seed beside a model.

    Raises:
        ConfigError: It is invalid, or both or none of model and configuration are given.
    """
    from volseg.config.load import given_values, load_config
    from volseg.config.schema import Config
    from volseg.errors import ConfigError

    for name, value in (("scans", scans), ("output", output)):
        check_type(name, value, str, Path)
    check_type("model", model, str, Path, type(None))
    check_type("config", config, str, Path, Mapping, Config, type(None))
    check_overrides(overrides)
    if model is not None:
        others = [key for key in given_values(None, overrides) if key not in BESIDE_MODEL]
        if config is not None or others:
            found = ", ".join([*(["a configuration"] if config is not None else []), *others])
            expected = " and ".join(BESIDE_MODEL) + " alone"
            hint = "leave out the model, or the settings of the encoder"
            raise ConfigError("a trained model has its own settings", found=found, expected=expected, hint=hint)
    elif config is None and not overrides:
        hint = "give a model, or model.encoder=... and model.weights=..."
        raise ConfigError("no encoder is given", expected="a trained model, or a configuration", hint=hint)
    alone = ["model.adjacent_slices=1"] if config is None else []
    return load_config(config, [*alone, *overrides])


@contextmanager
def _scans(
    scans: PathLike,
    output: Path,
    model: PathLike | None,
    settings: Config,
    labels: Labels | None,
    progress: StageProgress | None,
) -> Iterator[ScanSet]:
    """Find the scans, compare them with the labels, and prepare them and the encoder."""
    from volseg.io.cases import list_images
    from volseg.parallel import stage_progress
    from volseg.probing.labels import check_scans
    from volseg.probing.scans import scans_of_config, scans_of_model

    if model is not None:
        found = scans_of_model(model, scans, settings.device)
        if labels is not None:
            check_scans(labels, [case.id for case in found.cases], scans)
        yield found
        return
    cases = list_images(scans)
    if labels is not None:
        check_scans(labels, [case.id for case in cases], scans)
    cache = Path(settings.data.cache) if settings.data.cache else output.parent / "preprocessed"
    with scans_of_config(settings, cases, cache, stage_progress(progress, "preprocess")) as found:
        yield found
