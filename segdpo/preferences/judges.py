"""Judges: functions `(record, masks, rng) -> scores` of the candidates of an image; higher is better."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor, nn

from segdpo.checks import IGNORE, check_range
from segdpo.data import IMAGENET_MEAN, IMAGENET_STD, Image, Record
from segdpo.masks import (
    CannotJudge,
    Mask,
    Masks,
    Region,
    band_overlap,
    boundary_width,
    boxed_regions,
    class_overlaps,
    contour_distances,
    iou_matrix,
    robust_hausdorff,
    share_within,
)
from segdpo.preferences.network import to_model_input
from segdpo.preferences.staple import staple

Scores = Float64[np.ndarray, "K"]
Judge = Callable[[Record, Masks, np.random.Generator], Scores]
Spacing = tuple[float, float]


def iou(record: Record, masks: Masks, rng: np.random.Generator, *, background: bool = False) -> Scores:
    """|G ∩ M| / |G ∪ M| with the record's gold mask G."""
    gold = _gold_of(record, masks)
    return np.array([_mean_iou(gold, mask, background) for mask in masks])


def dice(record: Record, masks: Masks, rng: np.random.Generator, *, background: bool = False) -> Scores:
    """2|G ∩ M| / (|G| + |M|) with the record's gold mask G."""
    gold = _gold_of(record, masks)
    return np.array([_mean_dice(gold, mask, background) for mask in masks])


def agreement(record: Record, masks: Masks, rng: np.random.Generator, *, background: bool = False) -> Scores:
    """Mean IoU with the other candidates; needs no gold."""
    if len(masks) < 2:
        raise CannotJudge(f"Record {record.id!r}: agreement needs at least 2 masks but got {len(masks)}.")
    table = iou_matrix(masks, background=background)
    return np.asarray((table.sum(1) - table.diagonal()) / (len(masks) - 1))


def consensus(
    record: Record, masks: Masks, rng: np.random.Generator, *, disputed: bool = True, background: bool = False
) -> Scores:
    """IoU with the STAPLE consensus of all candidates, which weighs them by estimated skill; needs no gold.

    `disputed`: see `staple`.
    """
    labels = staple(masks, disputed=disputed).labels
    return np.array([_mean_iou(labels, mask, background) for mask in masks])


def by_function(
    record: Record, masks: Masks, rng: np.random.Generator, *, function: Callable[[Image, Mask], float]
) -> Scores:
    """Return `function(image, mask)` of each mask, a function of yours."""
    return np.array([float(function(record.image, mask)) for mask in masks], dtype=np.float64)


def gumbel(record: Record, masks: Masks, rng: np.random.Generator, *, judge: Judge, temperature: float) -> Scores:
    """Return the judge's scores + T·Gumbel noise: P(a above b) = σ((s_a − s_b)/T), Bradley–Terry for every pair.

    Rankings follow the Plackett–Luce model. `temperature` T is in units of the judge's scores.
    """
    check_range("temperature", temperature, above=0)
    scores = judge(record, masks, rng)
    return scores + temperature * rng.gumbel(size=len(scores))


def boundary_iou(
    record: Record, masks: Masks, rng: np.random.Generator, *, width: int | None = None, background: bool = False
) -> Scores:
    """IoU of the bands of `width` pixels inside the contours of gold and mask.

    Cheng et al., "Boundary IoU", 2021. `width` None: 2 % of the image's diagonal, at least 1, as in the paper.
    """
    gold = _gold_of(record, masks)
    pixels = boundary_width(gold.shape) if width is None else width
    if pixels < 1:
        raise ValueError(f"Expected width to be at least 1 pixel but got {width}.")

    def overlap(of_gold: Region, of_mask: Region, valid: Region) -> float:
        return band_overlap(of_gold, of_mask, valid, pixels)

    return _judge_classes(gold, masks, background, overlap, best=1.0, margin=pixels)


def hd95(
    record: Record,
    masks: Masks,
    rng: np.random.Generator,
    *,
    spacing: Spacing = (1.0, 1.0),
    background: bool = False,
) -> Scores:
    """−max over both directions of the 95th percentile of the distances from contour to contour; 0 is best.

    `spacing`: height and width of a pixel. A class that only one of the two masks has
    counts as the diagonal of the image.
    """
    gold = _gold_of(record, masks)
    worst = float(np.hypot(gold.shape[0] * spacing[0], gold.shape[1] * spacing[1]))

    def distance(of_gold: Region, of_mask: Region, valid: Region) -> float:
        return -robust_hausdorff(*contour_distances(of_gold, of_mask, valid, spacing), worst=worst)

    return _judge_classes(gold, masks, background, distance, best=0.0)


def surface_dice(
    record: Record,
    masks: Masks,
    rng: np.random.Generator,
    *,
    tolerance: float,
    spacing: Spacing = (1.0, 1.0),
    background: bool = False,
) -> Scores:
    """Share of both contours that lies within `tolerance` (in units of `spacing`) of the other contour.

    Nikolov et al., "Deep learning to achieve clinically applicable segmentation of head and neck anatomy", 2018;
    contours counted in pixels.
    """
    if tolerance < 0:
        raise ValueError(f"Expected tolerance to be at least 0 but got {tolerance}.")
    gold = _gold_of(record, masks)

    def share(of_gold: Region, of_mask: Region, valid: Region) -> float:
        return share_within(*contour_distances(of_gold, of_mask, valid, spacing), tolerance)

    return _judge_classes(gold, masks, background, share, best=1.0)


def by_network(
    record: Record,
    masks: Masks,
    rng: np.random.Generator,
    *,
    model: nn.Module,
    device: str = "cpu",
    views: Callable[..., Any] | None = None,
) -> Scores:
    """Return the network's reward of each mask; needs no gold.

    Args:
        record: of the image.
        masks: uint8 [K, H, W].
        rng: not used.
        model: called as (image [1, C, H, W], masks [K, H, W], image_index [K]), returns [K].
        device: where it runs.
        views: the transform `(image, masks, rng) -> View` that the model was trained with; None: normalisation by the
            model's `mean` and `std` alone.
    """
    empty = np.flatnonzero((masks == IGNORE).all((1, 2)))
    if len(empty):
        raise CannotJudge(f"Record {record.id!r}: mask {empty[0]} ignores every pixel.")
    image, seen = _model_inputs(record, masks, model, views)
    model.to(device).eval()
    try:
        with torch.inference_mode():
            index = torch.zeros(len(seen), dtype=torch.int64, device=device)
            rewards: Tensor = model(image[None].to(device), torch.from_numpy(seen).to(device), index)
    except ValueError as error:
        raise ValueError(f"Record {record.id!r}: {error}") from error
    scores = rewards.double().cpu().numpy()
    if scores.shape != (len(masks),) or not np.isfinite(scores).all():
        raise ValueError(
            f"Expected {len(masks)} finite rewards for record {record.id!r} but got {scores.tolist()}; train the "
            "reward model again, or use another."
        )
    return np.asarray(scores)


def _model_inputs(
    record: Record, masks: Masks, model: nn.Module, views: Callable[..., Any] | None
) -> tuple[Tensor, Masks]:
    if views is None:
        mean, std = getattr(model, "mean", IMAGENET_MEAN), getattr(model, "std", IMAGENET_STD)
        return to_model_input(record.image, mean, std), masks
    # Transforms of evaluation draw no random numbers.
    view = views(record.image, masks, np.random.default_rng(0))
    return torch.from_numpy(view.image), view.masks


def _gold_of(record: Record, masks: Masks) -> Mask:
    """Return the record's gold mask; raise CannotJudge if it has none."""
    if record.gold is None:
        raise CannotJudge(
            f"Record {record.id!r} has no gold mask to judge by; choose a judge that needs none (agreement, consensus)."
        )
    if record.gold.shape != masks.shape[1:]:
        raise ValueError(
            f"Expected masks of the shape of gold, {record.gold.shape}, for record {record.id!r} "
            f"but got {masks.shape[1:]}."
        )
    if (record.gold == IGNORE).all():
        raise CannotJudge(f"Record {record.id!r}: gold ignores every pixel.")
    return record.gold


def _mean_iou(gold: Mask, mask: Mask, background: bool) -> float:
    both, of_gold, of_mask = class_overlaps(gold, mask, background=background)
    return float((both / (of_gold + of_mask - both)).mean()) if len(both) else 1.0


def _mean_dice(gold: Mask, mask: Mask, background: bool) -> float:
    both, of_gold, of_mask = class_overlaps(gold, mask, background=background)
    return float((2 * both / (of_gold + of_mask)).mean()) if len(both) else 1.0


def _judge_classes(
    gold: Mask,
    masks: Masks,
    background: bool,
    judge: Callable[[Region, Region, Region], float],
    best: float,
    margin: int = 1,
) -> Scores:
    scores = []
    for mask in masks:
        regions = boxed_regions(gold, mask, background=background, margin=margin)
        values = [judge(of_gold, of_mask, valid) for _, of_gold, of_mask, valid in regions]
        # NaN: neither mask has a contour, which is a perfect match.
        scores.append(float(np.mean([best if np.isnan(value) else value for value in values])) if values else best)
    return np.array(scores, dtype=np.float64)
