"""What is wrong or doubtful in a ``dataset.json``: misspelt keys, channels that disagree, entries of lists."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from volseg.errors import DataError, suggestion
from volseg.io.cases import LISTED, listed
from volseg.io.findings import Finding

READ = (
    *("labels", "channel_names", "modality", "training", "validation"),
    *("file_ending", "regions_class_order"),
)
"""Keys that are read, and that others may mean; ``name``, ``test`` and ``dataset`` are too short or common for that."""
MEANT = {
    "classes": "labels",
    "channels": "channel_names",
    "modalities": "modality",
    "train": "training",
    "val": "validation",
}
"""Other words for these keys."""
EITHER = ({"channel_names", "modality"}, {"training", "dataset"})
"""Keys of which one is enough."""
SILENT = ("numTraining", "numTest", "numValidation")
"""Keys of both dialects that are similar to others."""
ALIKE = 0.85
"""How alike two keys are of which one is probably misspelt."""
REPEATED = ("ct", "mr", "mri", "pet", "us", "rgb", "nonorm", "zscore", "rescale_0_1", "rescale_to_0_1", "rgb_to_0_1")
"""Names, lower case, that several channels may have: nnU-Net normalises channels by them."""
FOUND_LENGTH = 100


def misspelt_keys(content: Mapping[str, Any], file: Path) -> Iterator[Finding]:
    """Yield the keys that are not read, and are almost, or mean, one that is read and missing."""
    for key in content:
        meant = MEANT.get(key.lower()) or suggestion(key.lower(), READ, ALIKE)
        if key in (*READ, *SILENT) or meant is None:
            continue
        enough = next((keys for keys in EITHER if meant in keys), {meant})
        if enough.isdisjoint(content):
            yield Finding("not-read", (file,), f'"{key}"; did you mean "{meant}"?')


def doubtful_channels(content: Mapping[str, Any], file: Path) -> Iterator[Finding]:
    """Yield what is doubtful about ``channel_names`` and ``modality``; both are as expected, or missing."""
    key = "channel_names" if "channel_names" in content else "modality"
    channels, modality = content.get(key), content.get("modality")
    names = _lower(channels)
    if key != "modality" and modality is not None and _disagree(names, _lower(modality), one=isinstance(modality, str)):
        text = f'"modality" states {listed(_lower(modality))}, "channel_names" states {listed(names)}, which counts'
        yield Finding("channel-names", (file,), text)
    numbers = sorted(map(int, channels)) if isinstance(channels, Mapping) else range(len(names))
    if list(numbers) != list(range(len(names))):
        text = f'the numbers in "{key}" are {listed(list(map(str, numbers)))}; expected: 0 to {len(names) - 1}'
        yield Finding("channel-names", (file,), text)
    repeated = [name for name, count in Counter(names).items() if count > 1 and name not in REPEATED]
    if repeated:
        yield Finding("channel-names", (file,), f'several channels of "{key}" are called {listed(repeated)}')


def _disagree(names: Sequence[str], modalities: Sequence[str], *, one: bool) -> bool:
    """Return whether one is CT where the other is not, or there are other numbers; ``one`` stands for all channels."""
    if one:
        modality = modalities[0]
        return (modality == "ct" and "ct" not in names) or (modality in ("mr", "mri") and "ct" in names)
    return [name == "ct" for name in names] != [modality == "ct" for modality in modalities]


def _lower(names: Any) -> list[str]:
    """Return names as `channel_names` or `modality` have them, in lower case, in the order of their numbers."""
    if isinstance(names, Mapping):
        names = [names[key] for key in sorted(names, key=int)]
    names = [] if names is None else [names] if isinstance(names, str) else names
    return [str(name).strip().lower() for name in names]


def check_entries(entries: Iterable[tuple[str, Any]], keys: Sequence[str], file: Path, expected: str) -> None:
    """Check that the entries of a list of cases are objects with some keys.

    Args:
        entries: Where each entry stands, and the entry.
        keys: The keys that it must have.
        file: The ``dataset.json``.
        expected: An example of the list.

    Raises:
        DataError: Some are not; all are named.
    """
    invalid = []
    for where, entry in entries:
        missing = [key for key in keys if not entry.get(key)] if isinstance(entry, Mapping) else []
        if missing or not isinstance(entry, Mapping):
            invalid.append(
                f"{where} {f'has no {missing[0]}' if missing else 'is no object'}: {entry!r:.{FOUND_LENGTH}}"
            )
    if invalid:
        more = [f"and {len(invalid) - LISTED} more"] if len(invalid) > LISTED else []
        raise DataError(
            "cases in dataset.json are not listed as expected",
            file=file,
            found="\n    ".join([*invalid[:LISTED], *more]),
            expected=expected,
            hint='complete these entries; scans without a label belong under "test"',
        )
