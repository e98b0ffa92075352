"""Deriving the plan from a fingerprint, and revising a plan."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache, partial
from typing import Any

from volseg.config.levels import Strides
from volseg.planning import nnunet, rules
from volseg.planning.budget import MemoryBudget, largest_plan
from volseg.planning.channel import RULE_OF_NAME, ChannelIntensity
from volseg.planning.fingerprint import Fingerprint
from volseg.planning.plan import Plan, Size
from volseg.planning.ranges import ScanRanges
from volseg.planning.reasons import BY_HAND, explain
from volseg.planning.settings import read_overrides
from volseg.planning.working_grid import Pick, WorkingGrid

logger = logging.getLogger(__name__)

STATED = (*RULE_OF_NAME, "zscore", "mri", "mr")
"""Names of channels that say how to normalise them, lower case."""


def make_plan(
    fingerprint: Fingerprint, overrides: Mapping[str, Any] | None = None, budget: MemoryBudget | None = None
) -> Plan:
    """Derive the plan by the rules; fields that depend on an overridden field follow it.

    Args:
        fingerprint: The measured data set.
        overrides: Field name -> plain value; ``None`` keeps the rule.
        budget: Limit of the memory of a training step; without it the number of voxels of a patch is limited.

    Raises:
        ConfigError: A field is unknown or fixed, a value has the wrong type, values contradict each other, or no patch
            fits the budget.
        GeometryError: The voxels of a case are of another order of magnitude than the plan's.
    """
    overridden = read_overrides(overrides or {})
    pick = partial(_pick, overridden)
    cases = fingerprint.cases
    grid = WorkingGrid.of(cases, pick)
    given = overridden.get("patch_size")
    size = nnunet.start_shape(grid.median_shape, grid.spacing_mm).tolist() if given is None else given
    stride = pick("token_stride", lambda: rules.token_stride(cases, grid.axes, grid.spacing_mm, size))
    exact, spacing = given is not None, grid.spacing_mm

    @cache
    def plan_with(strides: Strides) -> Plan:
        complete = partial(_complete, fingerprint, grid, pick, {"token_stride": stride, "decoder_strides": strides})
        return _sized(complete, grid, strides[-1], overridden, budget, len(cases))

    strides = pick(
        "decoder_strides",
        lambda: _deepened(
            lambda strides: plan_with(strides).patch_size,
            spacing,
            rules.decoder_strides(spacing, size[0], stride, exact=exact),
            exact=exact,
        ),
    )
    plan = plan_with(strides)
    decides = budget is not None and budget.decides(plan, patch_by_hand=given is not None)
    return replace(plan, reasons=explain(fingerprint, plan, grid, overridden, budget if decides else None))


def _deepened(
    patch_of: Callable[[Strides], Size], spacing_mm: nnunet.Triple, strides: Strides, *, exact: bool
) -> Strides:
    """Return the strides with all levels below the token stride for which the patch, which follows them, has voxels."""
    while deeper := rules.one_level_deeper(spacing_mm, patch_of(strides), strides, exact=exact):
        if not rules.leaves_voxels(patch_of(deeper), deeper):
            break
        strides = deeper
    return strides


def _sized(
    complete: Callable[[Size, int], Plan],
    grid: WorkingGrid,
    multiple: Size,
    overridden: Mapping[str, Any],
    budget: MemoryBudget | None,
    cases: int,
) -> Plan:
    """Return the plan with the largest patch, a multiple of some voxels, and the batch for it."""
    given, batch = overridden.get("patch_size"), overridden.get("batch_size")
    sizes = (grid.median_shape, grid.spacing_mm, multiple)
    plan = complete(given or rules.patch_size(*sizes), nnunet.MIN_BATCH if batch is None else batch)
    if budget is None or not budget.decides(plan, patch_by_hand=given is not None):
        return plan
    patches = [given] if given is not None else rules.patch_sizes(*sizes)
    most = nnunet.largest_batch(grid.median_shape, cases, patches[0])
    return largest_plan(budget, complete, patches, batch=batch, largest_batch=most)


def _complete(
    fingerprint: Fingerprint, grid: WorkingGrid, pick: Pick, strides: Mapping[str, Any], patch: Size, batch: int
) -> Plan:
    """Return the plan with a patch and a batch, with the fields that follow them."""
    cases, spacing = fingerprint.cases, grid.spacing_mm
    modality = pick("modality", lambda: None)
    return Plan(
        dataset=fingerprint.dataset,
        modality=modality or fingerprint.modality,
        channels=fingerprint.channels,
        labels=fingerprint.label_map.to_plain(),
        regions=fingerprint.label_map.classes if fingerprint.label_map.regions else None,
        ignore_label=fingerprint.label_map.ignore_label,
        slice_axis=grid.slice_axis,
        spacing_mm=spacing,
        intensity=pick("intensity", lambda: _intensity(fingerprint, modality, grid.crop_nonzero)),
        crop_nonzero=grid.crop_nonzero,
        patch_size=patch,
        token_stride=strides["token_stride"],
        decoder_strides=strides["decoder_strides"],
        mirror_axes=pick("mirror_axes", lambda: rules.mirror_axes(cases, grid.axes)),
        nearest_depth=pick("nearest_depth", lambda: nnunet.is_thick_along_depth(spacing)),
        rotate_in_plane_only=pick("rotate_in_plane_only", lambda: rules.rotate_in_plane_only(spacing, patch)),
        air_below=pick("air_below", lambda: rules.air_below(cases, spacing, patch)),
        batch_size=batch,
        ranges=ScanRanges.of(cases),
        cases=tuple(case.id for case in cases),
    )


def revise_plan(plan: Plan, overrides: Mapping[str, Any]) -> Plan:
    """Override fields of a plan; decoder strides and patch follow spacing, token stride and patch as in `make_plan`.

    Args:
        plan: The plan.
        overrides: Field name -> plain value; ``None`` keeps the plan's value.

    Raises:
        ConfigError: A field is unknown or fixed, a value has the wrong type, or values contradict each other.
    """
    overridden = read_overrides(overrides)
    changed = {key for key, value in overridden.items() if value != getattr(plan, key)}
    reasons = {**plan.reasons, **dict.fromkeys(changed, BY_HAND)}
    if changed & {"spacing_mm", "token_stride", "patch_size"}:
        spacing, stride, patch = (
            overridden.get(key, getattr(plan, key)) for key in ("spacing_mm", "token_stride", "patch_size")
        )

        def patch_with(strides: Strides) -> Size:
            depth, height, width = (-(-size // step) * step for size, step in zip(patch, strides[-1], strict=True))
            return depth, height, width

        if "decoder_strides" not in overridden:
            exact = "patch_size" in overridden
            strides = rules.decoder_strides(spacing, patch[0], stride, exact=exact)
            overridden["decoder_strides"] = _deepened(patch_with, spacing, strides, exact=exact)
        overridden.setdefault("patch_size", patch_with(overridden["decoder_strides"]))
        cause = " and ".join(f"plan.{name}" for name in sorted(changed))
        reasons |= {key: f"follows {cause}" for key in ("decoder_strides", "patch_size") if key not in changed}
        kept = {"nearest_depth", "rotate_in_plane_only", "air_below"} - changed
        reasons |= dict.fromkeys(kept, f"kept from the plan of before {cause} was set")
    return replace(plan, **overridden, reasons=reasons)


def _pick(overridden: Mapping[str, Any], key: str, rule: Callable[[], Any]) -> Any:
    return overridden[key] if key in overridden else rule()


def _intensity(fingerprint: Fingerprint, modality: str | None, crop: bool) -> tuple[ChannelIntensity, ...]:
    """Return the rule of each channel by its name; an overridden modality applies to all channels."""
    for name in fingerprint.channels:
        if modality is None and name.strip().lower() not in STATED:
            logger.info("channel %s: normalised by z-score, as all channels whose name states nothing else", name)
    return tuple(
        ChannelIntensity.of_channel(modality or name, statistics, nonzero=crop)
        for name, statistics in zip(fingerprint.channels, fingerprint.intensity, strict=True)
    )
