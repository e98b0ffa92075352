"""Postprocessing of a mask class by class: largest component, minimum volume, filled holes.

The order is fixed: first every class loses its components (all but the largest, then the small ones), classes in the
order of their values; then holes are filled, in the same order. What is removed becomes background, so the place of an
island inside another class is background when that class's holes are filled.

Voxels of a class that share a face, an edge or a corner are connected (26 neighbours), as in nnU-Net; of components of
the same largest size all stay, so that the result does not depend on the order of the voxels. A hole is a region of
other voxels, connected through faces (6 neighbours, the counterpart of 26), that does not reach the class's box; of it
only background is filled, other classes in it stay.

Source: Isensee et al., nnU-Net (2021), ``remove_all_but_largest_component``; Kong and Rosenfeld, Digital topology
(1989), for the pair of connectivities.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from volseg.config.schema import PostprocessConfig
from volseg.errors import ConfigError, suggestion
from volseg.geometry.ops import Box, label_boxes
from volseg.geometry.volume import Mask
from volseg.io.labels import LabelMap
from volseg.postprocessing.components import find_components

Labels = NDArray[Any]
BACKGROUND = 0
ROUNDING = 1e-9
"""A component of exactly the minimum volume stays, whatever rounding its volume in ml went through."""


@dataclass(frozen=True, kw_only=True)
class Postprocessing:
    """What is done to the masks of a model.

    Attributes:
        largest_component: Classes of which only the largest component stays.
        min_volume_ml: Class -> components of less than this volume are removed.
        fill_holes: Classes whose holes are filled.
    """

    largest_component: tuple[str, ...] = ()
    min_volume_ml: Mapping[str, float] = field(default_factory=dict)
    fill_holes: tuple[str, ...] = ()

    @classmethod
    def from_config(cls, config: PostprocessConfig, label_map: LabelMap) -> Postprocessing:
        """Settings for these classes, ``all`` and a volume for all written out.

        Args:
            config: The settings.
            label_map: The classes.

        Raises:
            ConfigError: A name is not that of a class, or is the background's; or the classes are regions.
        """
        names = sorted(label_map.classes, key=label_map.classes.__getitem__)
        volumes = config.min_volume_ml
        if isinstance(volumes, (int, float)):
            volumes = dict.fromkeys(names, volumes) if volumes else {}
        chosen = {
            key: tuple(names) if value == "all" else tuple(value or ())
            for key, value in (("largest_component", config.largest_component), ("fill_holes", config.fill_holes))
        }
        for key, given in {**chosen, "min_volume_ml": tuple(volumes or ())}.items():
            _check_names(f"postprocess.{key}", given, names)
        result = cls(**chosen, min_volume_ml={name: float(ml) for name, ml in (volumes or {}).items()})
        if label_map.regions and result != cls():
            raise ConfigError(
                "masks of regions are not postprocessed",
                found=f"postprocess settings for {', '.join(names)}",
                hint="leave postprocess out, or give the classes one value each",
            )
        return result

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], label_map: LabelMap) -> Postprocessing:
        """Restore the result of :meth:`to_dict` from a model file; ``{}`` does nothing.

        Raises:
            ConfigError: An unknown key, a value of the wrong kind, or a name that is not that of a class.
        """
        known = [item.name for item in fields(PostprocessConfig)]
        _check_names("postprocessing", values, known)
        return cls.from_config(PostprocessConfig(**values), label_map)

    def to_dict(self) -> dict[str, Any]:
        """Plain lists, mappings and numbers."""
        return {
            "largest_component": list(self.largest_component),
            "min_volume_ml": dict(self.min_volume_ml),
            "fill_holes": list(self.fill_holes),
        }

    def joined(self, other: Postprocessing) -> Postprocessing:
        """Return the steps of both; of two minimum volumes of a class the larger."""
        volumes = {name: max(ml, self.min_volume_ml.get(name, 0.0)) for name, ml in other.min_volume_ml.items()}
        return Postprocessing(
            largest_component=tuple(dict.fromkeys((*self.largest_component, *other.largest_component))),
            min_volume_ml={**self.min_volume_ml, **volumes},
            fill_holes=tuple(dict.fromkeys((*self.fill_holes, *other.fill_holes))),
        )

    def apply(self, mask: Mask, labels: Mapping[str, int]) -> tuple[Mask, list[dict[str, Any]]]:
        """Postprocess a mask.

        Args:
            mask: The mask; left as it is.
            labels: File value of every class by name.

        Returns:
            The new mask (the same one if nothing is to be done), and what changed: for each class and step
            ``label``, ``step`` (a field of this class), ``components`` removed or holes filled, their ``voxels`` and
            ``ml``. Steps that changed nothing are left out.
        """
        if self == Postprocessing():
            return mask, []
        voxel_ml = mask.grid.voxel_ml
        voxels = mask.labels.copy()
        changes = self._remove(voxels, labels, voxel_ml) + self._fill(voxels, labels)
        record = [
            {"label": name, "step": step, "components": n, "voxels": size, "ml": round(size * voxel_ml, 6)}
            for name, step, n, size in changes
            if size
        ]
        return Mask(voxels, mask.grid), record

    def _remove(self, voxels: Labels, labels: Mapping[str, int], voxel_ml: float) -> list[tuple[str, str, int, int]]:
        """Remove components in place; (class, step, components, voxels) of each step."""
        changes = []
        for name, box in class_boxes(voxels, labels, {*self.largest_component, *self.min_volume_ml}).items():
            minimum = self.min_volume_ml.get(name, 0.0) / voxel_ml * (1 - ROUNDING)
            largest = name in self.largest_component
            others, small = remove_components(voxels[box], labels[name], largest=largest, min_voxels=minimum)
            changes += [(name, "largest_component", *others), (name, "min_volume_ml", *small)]
        return changes

    def _fill(self, voxels: Labels, labels: Mapping[str, int]) -> list[tuple[str, str, int, int]]:
        boxes = class_boxes(voxels, labels, self.fill_holes)
        return [(name, "fill_holes", *fill_holes(voxels[box], labels[name])) for name, box in boxes.items()]


def _check_names(key: str, given: Any, known: Sequence[str]) -> None:
    for name in given:
        if name not in known:
            similar = suggestion(name, known)
            raise ConfigError(
                f"{key} contains an unknown name",
                found=name,
                expected=", ".join(known),
                hint=f"did you mean {similar}?" if similar else None,
            )


def class_boxes(voxels: Labels, labels: Mapping[str, int], names: Collection[str]) -> dict[str, Box]:
    """The box of each of the named classes that occurs, by ascending value."""
    boxes = label_boxes(voxels, (labels[name] for name in names))
    return {name: boxes[labels[name]] for name in sorted(names, key=labels.__getitem__) if labels[name] in boxes}


def remove_components(
    voxels: Labels, value: int, *, largest: bool = False, min_voxels: float = 0.0
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Turn components of a class into background, in place.

    Args:
        voxels: (D, H, W) labels, the class's box.
        value: The class's value.
        largest: Remove all but the largest; of several of that size all stay.
        min_voxels: Of what then remains, remove those with fewer voxels.

    Returns:
        (components, voxels) removed by ``largest``, and by ``min_voxels``.
    """
    components = find_components(lambda slab: voxels[slab] == value, voxels.shape, 26)
    sizes = components.sizes_vox
    others = (sizes < sizes.max()) if largest else np.zeros(len(sizes), np.bool_)
    small = ~others & (sizes < min_voxels)
    for slab, number in components.voxels(others | small):
        voxels[slab][number > 0] = BACKGROUND
    return _count(sizes, others), _count(sizes, small)


def _count(sizes: NDArray[np.int64], chosen: NDArray[np.bool_]) -> tuple[int, int]:
    return int(np.count_nonzero(chosen)), int(sizes[chosen].sum())


def fill_holes(voxels: Labels, value: int) -> tuple[int, int]:
    """Turn the background in the holes of a class into that class, in place.

    Args:
        voxels: (D, H, W) labels, the class's box; what reaches its surface is outside.
        value: The class's value.

    Returns:
        Holes in which there was background, and voxels filled.
    """
    components = find_components(lambda slab: voxels[slab] != value, voxels.shape, 6)
    filled = np.zeros(len(components.sizes_vox) + 1, np.int64)
    for slab, number in components.voxels(components.enclosed):
        number = np.where(voxels[slab] == BACKGROUND, number, 0)
        filled += np.bincount(number.ravel(), minlength=len(filled))
        voxels[slab][number > 0] = value
    return int(np.count_nonzero(filled[1:])), int(filled[1:].sum())
