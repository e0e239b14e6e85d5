"""What the Triton kernels are told beside logits and masks: small tables, made on the device without waiting for it."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Integer
from torch import Tensor

from segdpo.kernels.pixels import EvenMeasure, ImageIndex, Labels, Logits, Measure, score_dtype

Table = Float[Tensor, "scores pairs classes_or_1"]


@dataclass(frozen=True, eq=False)
class Plan:
    """One entry a score in each tuple, and a bit a score in each int.

    Attributes:
        insides: which pixels count.
        weigh_by: the labels by which the tables are read.
        margin_table: what a step of a pixel's logits weighs in the margin, by class, or one weight for all.
        chosen_table: what a pixel's quantity weighs in the chosen score.
        image_index: the image of each pair, None for one pair an image.
        order: the pairs, those of one image side by side.
        starts: where each image's pairs begin in `order`.
        wanted: of which scores the chosen one is wanted.
        odds: which scores count log-odds.
        even: which scores count every pixel where the masks differ, and no other: their `insides` are not read.
    """

    insides: tuple[Labels, ...]
    weigh_by: tuple[Labels, ...]
    margin_table: Table
    chosen_table: Table
    image_index: ImageIndex | None
    order: Integer[Tensor, "places"]
    starts: Integer[Tensor, "bounds"]
    wanted: int
    odds: int
    even: int


def make_plan(logits: Logits, chosen: Labels, measures: Sequence[Measure], wants_chosen: Sequence[bool]) -> Plan:
    """Bring the measures, all of one set of pairs, to what the kernels read."""
    columns = max(measure.weights.shape[1] for measure in measures)
    weights = [measure.weights.expand(-1, columns).to(score_dtype(logits)) for measure in measures]
    odds = [measure.quantity == "log_odds" for measure in measures]
    # Log-odds are ±z, and swapping the class moves them by 2z.
    steps = [table * 2 if odd else table for table, odd in zip(weights, odds, strict=True)]
    # The margin of such a score needs no mask of pixels, and to ask for it would make one.
    even = [isinstance(m, EvenMeasure) and not wants for m, wants in zip(measures, wants_chosen, strict=True)]
    masks = [
        (chosen, chosen) if skip else (measure.inside.contiguous().view(torch.uint8), measure.weigh_by.contiguous())
        for measure, skip in zip(measures, even, strict=True)
    ]
    image_index = measures[0].image_index
    order, starts = _by_image(image_index, len(logits), logits.device)
    return Plan(
        insides=tuple(inside for inside, _ in masks),
        weigh_by=tuple(labels for _, labels in masks),
        margin_table=torch.stack(steps),
        chosen_table=torch.stack(weights),
        image_index=None if image_index is None else image_index.contiguous(),
        order=order,
        starts=starts,
        wanted=_bits(wants_chosen),
        odds=_bits(odds),
        even=_bits(even),
    )


def _by_image(image_index: ImageIndex | None, images: int, device: torch.device) -> tuple[Tensor, Tensor]:
    if image_index is None:
        nothing = torch.empty(0, dtype=torch.int64, device=device)
        return nothing, nothing
    of_image, order = image_index.sort(stable=True)
    bounds = torch.arange(images + 1, device=device, dtype=of_image.dtype)
    return order, torch.searchsorted(of_image, bounds)


def _bits(flags: Sequence[bool]) -> int:
    return sum(int(flag) << place for place, flag in enumerate(flags))
