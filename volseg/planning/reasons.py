"""Why each field of a plan has its value, in sentences."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable

import numpy as np

from volseg.config.levels import receptive_field
from volseg.config.sizes import format_size
from volseg.errors import counted
from volseg.planning import nnunet, rules
from volseg.planning.budget import MemoryBudget
from volseg.planning.channel import ChannelIntensity
from volseg.planning.fingerprint import AIR_CUBE_MM, AIR_WINDOW_HU, Fingerprint
from volseg.planning.plan import Plan
from volseg.planning.working_grid import WorkingGrid

BY_HAND = "set by hand"
PLANES = {"S": "axial", "A": "coronal", "R": "sagittal"}


def explain(
    fingerprint: Fingerprint, plan: Plan, grid: WorkingGrid, overridden: Collection[str], budget: MemoryBudget | None
) -> dict[str, str]:
    """Return field -> sentence, in the order of the plan's fields.

    Args:
        fingerprint: The measured data set.
        plan: The plan, without reasons.
        grid: Its working grid.
        overridden: Fields that were set by hand.
        budget: The limit of memory, if one decides about patch and batch.
    """
    reasons = {
        "modality": fingerprint.channel_source,
        "slice_axis": _slice_axis(fingerprint, plan),
        "spacing_mm": _spacing(grid),
        "intensity": "; ".join(_intensity(*pair) for pair in zip(plan.channels, plan.intensity, strict=True)),
        "crop_nonzero": _cropping(fingerprint, plan),
        "patch_size": _patch(plan, grid, budget),
        "token_stride": _token_stride(fingerprint, plan, grid),
        "decoder_strides": _decoder_strides(plan),
        "mirror_axes": _mirroring(fingerprint, grid),
        "nearest_depth": _nearest_depth(plan),
        "rotate_in_plane_only": _rotation(plan),
        "air_below": _air(fingerprint, plan),
        "batch_size": _batch(plan, grid, len(fingerprint.cases), budget),
    }
    return {key: BY_HAND if key in overridden else text for key, text in reasons.items()}


def times(values: Iterable[float]) -> str:
    """Return sizes with at most 4 digits: ``7.7 x 1.25 x 1.25``."""
    return " x ".join(f"{value:.4g}" for value in values)


def _slice_axis(fingerprint: Fingerprint, plan: Plan) -> str:
    median = np.median([case.spacing_mm for case in fingerprint.cases], axis=0)
    coarse = median["RAS".index(plan.slice_axis)]
    text = f"{PLANES[plan.slice_axis]} slices: median spacing {times(median)} mm along R, A, S"
    tied = sum(value >= 0.99 * coarse for value in median) > 1
    return f"{text}; of equally coarse axes, S comes before A and R" if tied else f"{text}; this axis is the coarsest"


def _spacing(grid: WorkingGrid) -> str:
    median, shape = np.percentile(grid.spacings_mm, 50, axis=0), np.percentile(grid.nonzero_shapes, 50, axis=0)
    if not nnunet.is_anisotropic(median, shape):
        return "median over the cases"
    return (
        f"median over the cases in plane; their slices are thick (median {median.max():.4g} mm, over 3 times the other "
        "axes, with less than a third of their voxels) and take the 10th percentile, so that few are interpolated"
    )


def _intensity(name: str, rule: ChannelIntensity) -> str:
    where = " over its nonzero voxels" if rule.nonzero else ""
    return {
        "ct": f"{name}: clipped to {rule.clip_low} to {rule.clip_high} HU; mean {rule.mean} and deviation {rule.std} "
        "are those of the foreground of all cases, because CT has a fixed scale",
        "zscore": f"{name}: z-score of each case{where}, because the name of the channel states no fixed scale",
        "rescale": f"{name}: each case is mapped to 0 to 1, as the name of the channel says",
        "rgb": f"{name}: divided by 255, as the name of the channel says",
        "none": f"{name}: values are kept, as the name of the channel says",
    }[rule.rule]


def _cropping(fingerprint: Fingerprint, plan: Plan) -> str:
    kept = np.median([np.prod(case.nonzero_shape) / np.prod(case.shape) for case in fingerprint.cases])
    also = "; z-scores are then taken over nonzero voxels" if plan.crop_nonzero else ""
    return f"the box of nonzero voxels is {1 - kept:.0%} smaller than the median case; over 25% are needed{also}"


def _patch(plan: Plan, grid: WorkingGrid, budget: MemoryBudget | None) -> str:
    whole = rules.patch_sizes(grid.median_shape, grid.spacing_mm, plan.decoder_strides[-1])[0]
    case = f"the median case of {times(grid.median_shape)} voxels"
    rounded = f"rounded up to multiples of {times(plan.decoder_strides[-1])}"
    if plan.patch_size == whole:
        return f"{case}, {rounded}"
    if budget is None:
        return f"the part of {case} that has at most {rules.PATCH_VOXELS:,} voxels, {rounded}"
    return f"the part of {case} with which {budget.network} fits into {budget.limit_text}, {rounded}"


def _batch(plan: Plan, grid: WorkingGrid, cases: int, budget: MemoryBudget | None) -> str:
    if budget is None:
        return "the default; with --memory or plan.memory it grows once the whole case fits"
    needed = format_size(budget.training_bytes(plan))
    text = f"a step of {budget.network} needs about {needed} of {budget.limit_text}"
    most = nnunet.largest_batch(grid.median_shape, cases, plan.patch_size)
    largest = plan.batch_size == most > nnunet.MIN_BATCH
    if most == nnunet.MIN_BATCH:
        return f"{text}; more than {most} patches would hold over 5% of the voxels of the data set"
    return f"{text}; a batch holds at most 5% of the voxels of the data set" if largest else text


def _token_stride(fingerprint: Fingerprint, plan: Plan, grid: WorkingGrid) -> str:
    name, width = rules.smallest_structure(fingerprint.cases, grid.axes, plan.spacing_mm)
    voxels, tokens = counted(f"{width:.3g}", "voxel"), counted(f"{width / plan.token_stride:.2g}", "token")
    text = f"the narrowest class, {name}, is {voxels} wide in plane: {tokens}"
    if width < rules.TOKENS_ACROSS * plan.token_stride and plan.token_stride > min(rules.TOKEN_STRIDES):
        finer = plan.token_stride // 2
        count = rules.tokens(nnunet.start_shape(grid.median_shape, grid.spacing_mm), finer)
        return (
            f"{text}, and {rules.TOKENS_ACROSS} are wanted, but at {finer} a patch would have {count:,} tokens, over "
            f"{rules.MOST_TOKENS:,}; the convolutions alone must find such structures"
        )
    if plan.token_stride == max(rules.TOKEN_STRIDES):
        return text
    coarser = 2 * plan.token_stride
    return f"{text}; at {coarser} it would be {width / coarser:.2g}, and {rules.TOKENS_ACROSS} are wanted"


def _decoder_strides(plan: Plan) -> str:
    deepest = plan.decoder_strides[-1]
    times_halved = int(math.log2(deepest[0]))
    halved = f"halved {counted(times_halved, 'time')}" if times_halved else "not halved"
    text = (
        f"every level halves the plane, down to the token stride and on while {nnunet.MIN_EDGE} voxels of a patch are "
        f"left; depth is {halved}"
    )
    if deepest[0] != deepest[1]:
        text = f"{text}: only where its spacing is within a factor 2 of the plane's and 8 voxels are left"
    return f"{text}. {field_of_convolutions(plan)}"


def field_of_convolutions(plan: Plan) -> str:
    """Return what the convolutions see, as a sentence."""
    voxels = receptive_field(plan.decoder_strides, plan.spacing_mm)
    mm = [round(size * spacing) for size, spacing in zip(voxels, plan.spacing_mm, strict=True)]
    return f"The convolutions see {times(voxels)} voxels ({times(mm)} mm)"


def _mirroring(fingerprint: Fingerprint, grid: WorkingGrid) -> str:
    fixed = rules.fixed_directions(fingerprint.cases)
    if not fixed:
        return "no two classes lie in the same order along any axis, and none on one side of the body"
    axes = ("left-right", "front-back", "top-bottom")
    return "not " + "; not ".join(
        f"along {'DHW'[grid.axes.index(axis)]} ({axes[axis]}): {reason}" for axis, reason in fixed.items()
    )


def _nearest_depth(plan: Plan) -> str:
    ratio = plan.spacing_mm[0] / min(plan.spacing_mm[1:])
    return f"slices are {_times_as(ratio, 'thick')} as the finest axis; over 3 times, they are not interpolated"


def _rotation(plan: Plan) -> str:
    if plan.nearest_depth:
        return "slices are thick"
    return f"the patch is {_times_as(max(plan.patch_size) / plan.patch_size[0], 'long')} as deep; over 3 times is flat"


def _times_as(ratio: float, adjective: str) -> str:
    text = f"{ratio:.3g}"
    return f"as {adjective}" if text == "1" else f"{text} times as {adjective}"


def _air(fingerprint: Fingerprint, plan: Plan) -> str:
    if any(case.labels_in_air is None for case in fingerprint.cases):
        return "only CT has a fixed value of air"
    inside = [case.id for case in fingerprint.cases if case.labels_in_air]
    if inside:
        return f"labels lie in air in {len(inside)} of {len(fingerprint.cases)} cases, for example {inside[0]}"
    if plan.air_below is None:
        return f"a patch is thinner than the cubes of {AIR_CUBE_MM:.0f} mm that were searched for labels"
    return f"no label lies in a cube of {AIR_CUBE_MM:.0f} mm below {AIR_WINDOW_HU:.0f} HU"
