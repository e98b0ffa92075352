"""Converting and downloading data sets."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from volseg.api.arguments import PathLike, check_type

if TYPE_CHECKING:
    from volseg.io.datasets import Dataset
    from volseg.parallel import StageProgress


def convert(
    dataset: PathLike,
    out: PathLike,
    *,
    resample_channels: bool = False,
    workers: int = 2,
    progress: StageProgress | None = None,
) -> Dataset:
    """Write a data set in any layout as nnU-Net v2 raw: ``imagesTr``, ``labelsTr``, ``imagesTs``, ``dataset.json``.

    Scans become one ``.nii.gz`` file per channel, label values consecutive, and the ignore label the last one. Files
    that are already so are copied. The folder appears when it is complete.

    Args:
        dataset: Data set in any layout that :func:`plan` reads; classes may be regions.
        out: Folder to write; it must not exist or be empty.
        resample_channels: Resample channels on other grids to that of the first, linearly.
        workers: Processes that convert cases.
        progress: Called with the stage ``convert`` and the number of finished and of all cases.

    Returns:
        The written data set.

    Raises:
        DataError: The data set or some of its cases cannot be used; all invalid cases are reported together.
        OutputError: ``out`` is not empty, or cannot be written.
    """
    from volseg.conversion import write_nnunet
    from volseg.io.datasets import read_dataset
    from volseg.parallel import stage_progress

    check_type("dataset", dataset, str, Path)
    check_type("out", out, str, Path)
    write_nnunet(
        read_dataset(dataset, trainable=False),
        Path(out),
        resample_channels=resample_channels,
        workers=workers,
        progress=stage_progress(progress, "convert"),
    )
    return read_dataset(out, trainable=False)


def download(name: str, folder: PathLike = ".") -> Path:
    """Download a public data set, check its checksum and extract it.

    Args:
        name: ``msd:`` and a task of the Medical Segmentation Decathlon, such as ``msd:Task04_Hippocampus``.
        folder: Where to put the folder of the data set.

    Returns:
        The folder of the data set; if it is there already, nothing is downloaded.

    Raises:
        ConfigError: There is no data set of this name; the message lists all.
        DataError: There is no network, or the archive is damaged; the message says what to download by hand.
        OutputError: The folder cannot be written.
    """
    from volseg.download import download_dataset

    check_type("name", name, str)
    check_type("folder", folder, str, Path)
    return download_dataset(name, Path(folder))
