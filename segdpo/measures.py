"""From a user's tensors to what kernels eat: flat legal labels, and a Measure of which pixels count how much."""

import torch
from torch import Tensor

from segdpo.checks import check_choice, check_shapes, check_values
from segdpo.kernels.pixels import Measure, score_dtype
from segdpo.regions import IGNORE, REDUCTIONS, REGIONS, RegionFunction, pixel_weights

QUANTITIES = ("log_likelihood", "log_odds")
RegionChoice = str | RegionFunction | Tensor


def prepare(
    logits: Tensor,
    masks: dict[str, Tensor],
    *,
    valid: Tensor | None,
    image_index: Tensor | None,
    quantity: str = "log_likelihood",
    region: RegionChoice = "image",
    reduction: str = "mean",
    check: bool | None = None,
) -> tuple[list[Tensor], Measure]:
    """Check everything once; return labels [pairs, pixels], best mask first, and the Measure that all of them share."""
    check_choice("quantity", quantity, QUANTITIES)
    check_choice("reduction", reduction, REDUCTIONS)
    check_shapes(logits, masks, image_index)
    image_index = None if image_index is None else image_index.long()
    # bool masks are class ids too; a view costs nothing.
    masks = {name: mask.view(torch.uint8) if mask.dtype == torch.bool else mask for name, mask in masks.items()}
    judged = torch.stack([mask != IGNORE for mask in masks.values()]).all(0)
    if valid is not None:
        judged = judged & _one_a_pair("valid", valid, judged, len(logits), image_index)
    # Ignored pixels take class 0, so that every kernel may index with every label.
    labels = {name: mask.masked_fill(~judged, 0).flatten(1) for name, mask in masks.items()}
    if check is None:
        check = logits.device.type == "cpu" and not torch.compiler.is_compiling()
    if check:
        check_values(labels, judged, logits)
    inside = judged & _region_mask(region, list(masks.values()), judged, len(logits), image_index)
    best, *_ = flat = list(labels.values())
    divisor = REDUCTIONS[reduction](best, inside.flatten(1), max(2, logits.shape[1]))
    weights = pixel_weights(divisor, score_dtype(logits))
    return flat, Measure(inside.flatten(1), weights, best, image_index, quantity)


def _region_mask(
    region: RegionChoice, masks: list[Tensor], judged: Tensor, images: int, image_index: Tensor | None
) -> Tensor:
    if isinstance(region, Tensor):
        return _one_a_pair("region", region, judged, images, image_index)
    if region == "disagreement":
        return torch.stack([mask != masks[-1] for mask in masks[:-1]]).any(0)
    if not callable(region):
        check_choice("region", region, REGIONS)
        region = REGIONS[region]
    return _one_a_pair("region", region(masks[0], masks[-1]), judged, images, image_index=None)


def _one_a_pair(name: str, mask: Tensor, like: Tensor, images: int, image_index: Tensor | None) -> Tensor:
    """Bring a mask that may be given per image to one per pair."""
    if mask.dtype != torch.bool or mask.shape[1:] != like.shape[1:] or len(mask) not in (images, len(like)):
        raise ValueError(
            f"Expected {name} to be a bool mask of shape {(images, *like.shape[1:])} (one an image) or "
            f"{tuple(like.shape)} (one a pair) but got {str(mask.dtype).removeprefix('torch.')} "
            f"of shape {tuple(mask.shape)}."
        )
    return mask if image_index is None or len(mask) != images else mask.index_select(0, image_index)
