"""Which stored bits of a DICOM slice are its values, and which pixels are padding outside of the image."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from volseg.errors import DataError
from volseg.io.dicom_headers import Header
from volseg.io.dicom_tags import COMPRESSED, JPEG_2000, invalid, value_of
from volseg.io.remarks import remark

Array = NDArray[Any]

AIR_HU = -1000.0
SHOWN = 3


def significant(stored: Array, header: Header) -> Array:
    """Return pixels without the bits above and below the stored ones, which may hold an overlay.

    Args:
        stored: Pixels ``(rows, columns)`` as they lie in the file, or as decoded.
        header: The header of their file.

    Raises:
        DataError: Bits below the stored ones, which are unused by the header, hold something.
    """
    allocated, used, high = bits_of(header)
    if header.transfer_syntax in JPEG_2000:  # whose codestream states bits and sign
        return stored
    low = high + 1 - used
    if low and (stored & ((1 << low) - 1)).any():
        raise DataError(
            "the bits of the pixels are not where the header says",
            file=header.member.name,
            found=f"values in the lowest {low} bits of {allocated}; BitsStored {used}, HighBit {high}",
            expected=f"HighBit {used - 1}, or nothing in these bits",
            hint="correct HighBit, or export the series again",
        )
    if used == allocated:
        return stored
    return np.asarray((stored << (allocated - 1 - high)) >> (allocated - used))


def bits_of(header: Header) -> tuple[int, int, int]:
    """Return BitsAllocated, BitsStored and HighBit; decoded pixels are in the lowest bits."""
    allocated = header.integer("BitsAllocated")
    used = header.integer("BitsStored", allocated)
    high = used - 1 if header.transfer_syntax in COMPRESSED else header.integer("HighBit", used - 1)
    return allocated, used, high


def beyond(stored: Array, pixels: Array, header: Header) -> Array:
    """Return which pixels hold something above the stored bits, ``(rows, columns)``: neither zero nor their sign.

    Args:
        stored: Pixels as they lie in the file.
        pixels: Those of :func:`significant`.
        header: The header of their file.
    """
    allocated, used, high = bits_of(header)
    if used == allocated or high != used - 1 or header.has_overlay:
        return np.zeros(stored.shape, bool)
    return np.asarray((stored != pixels) & (stored >> used != 0))


def padding(stored: Array, pixels: Array, header: Header) -> Array | None:
    """Return which pixels are padding by ``PixelPaddingValue``; ``None`` if none are or it is not stated.

    Args:
        stored: Pixels ``(rows, columns)`` as they lie in the file; padding may exceed their stored bits.
        pixels: Those of :func:`significant`.
        header: The header of their file.

    Raises:
        DataError: The tag is no whole number.
    """
    value = _padding_value(header, "PixelPaddingValue", pixels.dtype)
    if value is None:
        return None
    limit = _padding_value(header, "PixelPaddingRangeLimit", pixels.dtype)
    low, high = sorted((value, value if limit is None else limit))
    mask: Array = (pixels >= low) & (pixels <= high)
    if stored is not pixels:
        mask |= (stored >= low) & (stored <= high)
    return mask if mask.any() else None


def fill_padding(stack: Array, masks: Mapping[int, Array], modality: str, path: Path) -> None:
    """Set padding that looks like a part of the image to air or, where all of it is higher, to its smallest value.

    Padding is lower than the image nearly always, and stays as it is, as in ITK and dcm2niix. In CT, values above air
    are those of tissue; elsewhere 0 may be meant, and only padding above the whole image is changed. Pixels of the same
    value within the image stay as they are: padding reaches the border.

    Args:
        stack: Values ``(slices, rows, columns)``, changed in place.
        masks: Slice -> packed bits of its padding.
        modality: ``CT`` or another.
        path: The series, for messages.
    """
    unpacked = {index: _unpacked(bits, stack.shape[1:]) for index, bits in masks.items()}
    highest = max((float(stack[index][mask].max()) for index, mask in unpacked.items()), default=AIR_HU)
    if highest <= AIR_HU or (modality != "CT" and highest < stack.max()):
        return  # nearly always; the rest takes time
    images = [stack[index][~unpacked[index]] if index in unpacked else stack[index] for index in range(len(stack))]
    images = [image for image in images if image.size]
    if not images:
        return
    smallest, largest = float(min(image.min() for image in images)), float(max(image.max() for image in images))
    filler = max(smallest, AIR_HU) if modality == "CT" else smallest
    limit = filler if modality == "CT" else largest
    values: set[float] = set()
    for index, mask in unpacked.items():
        high = mask & (stack[index] > limit)
        if high.any():
            high &= _at_border(mask)
            values |= set(np.unique(stack[index][high])[:SHOWN].tolist())
            stack[index][high] = filler
    if values:
        remark("padding", path, f"value {', '.join(f'{one:g}' for one in sorted(values)[:SHOWN])}, now {filler:g}")


def _padding_value(header: Header, keyword: str, dtype: np.dtype[Any]) -> int | None:
    """Return a tag of padding as a value of the pixels' type; it may be stated as unsigned for signed pixels."""
    value = value_of(header.dataset, keyword, header.member)
    if value is None:
        return None
    if isinstance(value, bytes) and len(value) in (2, 4):  # where the type is not stated, and pydicom does not know it
        value = int.from_bytes(value, "big" if header.big_endian else "little")
    if not isinstance(value, int):
        raise invalid(keyword, value, header.member, "a whole number")
    bits = dtype.itemsize * 8
    value %= 1 << bits
    return value - (1 << bits) if dtype.kind == "i" and value >= 1 << (bits - 1) else value


def _unpacked(bits: Array, shape: tuple[int, ...]) -> Array:
    return np.unpackbits(bits, count=shape[0] * shape[1]).reshape(shape).astype(bool)


def _at_border(mask: Array) -> Array:
    """Return the pixels of a mask that are connected with the border of the slice."""
    from scipy import ndimage

    parts, _ = ndimage.label(mask)
    edges = np.concatenate([parts[0], parts[-1], parts[:, 0], parts[:, -1]])
    touching = np.unique(edges[edges > 0])
    return np.asarray(np.isin(parts, touching))
