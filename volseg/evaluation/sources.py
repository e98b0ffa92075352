"""Search for the masks in folders: a label map per case, or a folder per case with a file per class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from volseg.config.mask_formats import PROBABILITIES, UNCERTAINTY
from volseg.errors import ConfigError, DataError, missing_hint
from volseg.io.cases import BESIDE_SCANS, Case, list_folder
from volseg.io.json_files import read_json
from volseg.io.paths import is_folder
from volseg.io.volumes import has_mask_suffix, volume_stem

_CLASS_FOLDERS = ("", "segmentations")  # TotalSegmentator's output, and its training data


@dataclass(frozen=True)
class MaskSource:
    """The files of one case.

    Attributes:
        file: Label map of all classes; ``None`` if there is one file per class.
        class_files: Class name, from the file name -> file of a binary mask.
    """

    file: Path | None = None
    class_files: Mapping[str, Path] = field(default_factory=dict)

    def describe(self) -> str:
        """Return the path of the file, or of the folder of the class files."""
        return str(self.file if self.file is not None else next(iter(self.class_files.values())).parent)


@dataclass(frozen=True)
class MaskFolder:
    """A folder of masks.

    Attributes:
        root: The folder.
        cases: Case name -> its files, sorted by name.
        unknown: Names of entries that are not masks.
    """

    root: Path
    cases: Mapping[str, MaskSource]
    unknown: tuple[str, ...]


def find_masks(root: str | Path) -> MaskFolder:
    """Find the masks in a folder without reading them.

    ``case.nii.gz`` (or any other supported format) is a label map; ``case/liver.nii.gz`` or
    ``case/segmentations/liver.nii.gz`` is one class of a case (TotalSegmentator). Maps of probabilities and uncertainty
    beside a mask are no masks.

    Raises:
        DataError: The folder does not exist or two entries are masks of the same case.
    """
    root = Path(root)
    if not is_folder(root):
        raise DataError("the folder of masks does not exist", file=root, hint=missing_hint(root))
    cases: dict[str, MaskSource] = {}
    unknown = []
    for entry in list_folder(root):
        if entry.name.startswith("."):
            continue
        source = _source(entry)
        if source is None:
            if is_folder(entry) or entry.suffix.lower() not in BESIDE_SCANS:
                unknown.append(entry.name)
            continue
        name = volume_stem(entry) if source.file is not None else entry.name
        if name in cases:
            raise DataError(
                f"two masks of the case {name!r}",
                file=root,
                found=f"{cases[name].describe()} and {source.describe()}",
                hint="move one of them to another folder",
            )
        cases[name] = source
    maps = {f"{name}{ending[: ending.index('.')]}" for name in cases for ending in (PROBABILITIES, UNCERTAINTY)}
    masks = {name: source for name, source in sorted(cases.items()) if name not in maps}
    return MaskFolder(root, masks, tuple(unknown))


def find_references(ref: str | Path | Mapping[str, Path] | None, pairs: Sequence[Case] = ()) -> MaskFolder:
    """Find the reference of every case.

    Args:
        ref: Folder of references, or case -> file; ``None`` uses the labels of ``pairs``.
        pairs: Cases that a ``dataset.json`` lists. They take precedence over file names: the listed label is the
            reference of the case, which is named after its image, even if another file in the folder has that name.
            With a folder, cases whose label lies elsewhere are ignored.

    Raises:
        DataError: The folder does not exist, two files are masks of the same case, or there are no references.
    """
    if isinstance(ref, Mapping):
        return _listed_folder(ref)
    listed = {pair.id: pair.label for pair in pairs if pair.label is not None}
    if ref is None:
        if not listed:
            hint = "give --ref, or a dataset.json that lists its cases under 'training'"
            raise DataError("there are no references", hint=hint)
        return _listed_folder(listed)
    folder = find_masks(ref)
    root = folder.root.resolve()
    listed = {case: label for case, label in listed.items() if label.resolve().parent == root}
    listed_files = {volume_stem(label) for label in listed.values()}
    others = {case: source for case, source in folder.cases.items() if case not in listed_files}
    cases = others | {case: MaskSource(file=label) for case, label in listed.items()}
    return MaskFolder(folder.root, dict(sorted(cases.items())), folder.unknown)


def _listed_folder(files: Mapping[str, Path]) -> MaskFolder:
    cases = {case: MaskSource(file=Path(path)) for case, path in sorted(files.items())}
    root = next(iter(cases.values())).file if cases else None
    return MaskFolder(root.parent if root is not None else Path(), cases, ())


def read_case_names(file: str | Path) -> list[str]:
    """Read case names from a text file, one per line, or the held-out cases of a run's ``splits.json``.

    Raises:
        ConfigError: The file cannot be read, or contains no list of names.
    """
    file = Path(file)
    try:
        if file.suffix == ".json":
            names = read_json(file, "cases")["val"]
            if not isinstance(names, list):
                raise TypeError(f"'val' is {names!r}, not a list")
        else:
            names = file.read_text(encoding="utf-8-sig").split("\n")
        return [name.strip() for name in names if name.strip()]
    except (OSError, UnicodeDecodeError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            "the case names cannot be read",
            file=file,
            found=error.strerror if isinstance(error, OSError) else f"{type(error).__name__}: {error}",
            expected="one case name per line, or a run's splits.json",
        ) from error


def _source(entry: Path) -> MaskSource | None:
    """Return the files of an entry, which need not be readable; ``None`` if it is no mask."""
    for name in _CLASS_FOLDERS if is_folder(entry) else ():
        folder = entry / name
        files = list_folder(folder) if is_folder(folder) else []
        class_files = {volume_stem(path): path for path in files if has_mask_suffix(path)}
        if class_files:
            return MaskSource(class_files=class_files)
    return MaskSource(file=entry) if has_mask_suffix(entry) else None
