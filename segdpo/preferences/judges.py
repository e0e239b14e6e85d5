"""Judges: functions `(record, masks, rng) -> scores` of the candidates of an image; higher is better.

Those that need gold are marked by `reads_gold`, so that a run without it stops before it trains.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor, nn

from segdpo.checks import IGNORE, check_range
from segdpo.data import Image, Record, reads_gold
from segdpo.masks import Mask, Masks, contour_options, iou_matrix, mean_dice, mean_iou, measure_contours
from segdpo.models import IMAGENET_MEAN, IMAGENET_STD
from segdpo.preferences.network import to_model_input
from segdpo.preferences.staple import staple

Scores = Float64[np.ndarray, "K"]
Judge = Callable[[Record, Masks, np.random.Generator], Scores]
Spacing = tuple[float, float]


class CannotJudge(ValueError):  # noqa: N818 -- not a fault of the program: callers count such records and continue
    """One record has nothing to judge (no gold, no pixel that counts, no candidate); others may have."""


@reads_gold
def iou(record: Record, masks: Masks, rng: np.random.Generator, *, background: bool = False) -> Scores:
    """|G ∩ M| / |G ∪ M| with the record's gold mask G."""
    return _overlaps(mean_iou, _gold_of(record, masks), masks, background)


@reads_gold
def dice(record: Record, masks: Masks, rng: np.random.Generator, *, background: bool = False) -> Scores:
    """2|G ∩ M| / (|G| + |M|) with the record's gold mask G."""
    return _overlaps(mean_dice, _gold_of(record, masks), masks, background)


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
    return _overlaps(mean_iou, staple(masks, disputed=disputed).labels, masks, background)


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


@reads_gold
def boundary_iou(
    record: Record, masks: Masks, rng: np.random.Generator, *, width: int | None = None, background: bool = False
) -> Scores:
    """IoU of the bands of `width` pixels inside the contours of gold and mask.

    Cheng et al., "Boundary IoU", 2021. `width` None: 2 % of the image's diagonal, at least 1, as in the paper.
    """
    return _by_contours(record, masks, "boundary_iou", 1.0, background, boundary_width=width)


@reads_gold
def hd95(
    record: Record,
    masks: Masks,
    rng: np.random.Generator,
    *,
    spacing: Spacing = (1.0, 1.0),
    background: bool = False,
) -> Scores:
    """−max over both directions of the 95th percentile of the distances from contour to contour; 0 is best.

    `spacing`: height and width of a pixel. A class that only one of the two masks has counts as the image's diagonal.
    """
    return -_by_contours(record, masks, "hd95", 0.0, background, spacing=spacing)


@reads_gold
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
    return _by_contours(record, masks, "surface_dice", 1.0, background, spacing=spacing, tolerance=tolerance)


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


def _overlaps(measure: Callable[..., float], gold: Mask, masks: Masks, background: bool) -> Scores:
    scores = np.array([measure(mask, gold, background=background) for mask in masks], dtype=np.float64)
    # NaN: neither mask has a class that counts, which is a perfect match.
    return np.where(np.isnan(scores), 1.0, scores)


def _by_contours(record: Record, masks: Masks, name: str, best: float, background: bool, **options: Any) -> Scores:
    """Return the mean of a measure of contours over the classes of gold and mask; `best` where there is no contour."""
    gold = _gold_of(record, masks)
    measured = contour_options(gold.shape, **options)
    scores = []
    for mask in masks:
        values = [found[name] for _, found in measure_contours(mask, gold, measured, [name], background=background)]
        scores.append(float(np.mean([best if np.isnan(value) else value for value in values])) if values else best)
    return np.array(scores, dtype=np.float64)
