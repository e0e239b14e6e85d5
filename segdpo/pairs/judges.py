"""Judges: how good each candidate mask of a record is, larger = better, one number a mask.

A judge is a plain function `(record, masks, rng) -> float64 [K]`; bind its options with `functools.partial`, in yaml
`_partial_: true`. Judges by contours stand in judges_surface.py, a noisy judge in judges_noisy.py. All of them:

* leave out the pixels that gold ignores (255), and those that the mask ignores;
* take the mean over the classes present in gold or in the mask; `background` says whether class 0 counts;
* give a class that only one of the two has the worst value; where no class is present in either, the best value.
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float64

from segdpo.pairs.consensus import staple
from segdpo.pairs.overlap import CannotJudge, class_overlaps, iou_matrix
from segdpo.pairs.record import Image, Mask, Masks, Record
from segdpo.regions import IGNORE

Scores = Float64[np.ndarray, "K"]
Judge = Callable[[Record, Masks, np.random.Generator], Scores]


def iou(record: Record, masks: Masks, rng: np.random.Generator, *, background: bool = False) -> Scores:
    """|G ∩ M| / |G ∪ M| with the record's gold mask G."""
    gold = gold_of(record, masks)
    return np.array([_mean_iou(gold, mask, background) for mask in masks])


def dice(record: Record, masks: Masks, rng: np.random.Generator, *, background: bool = False) -> Scores:
    """2|G ∩ M| / (|G| + |M|) with the record's gold mask G."""
    gold = gold_of(record, masks)
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
    """IoU with the STAPLE consensus of all candidates, which trusts the more skilled of them more; needs no gold.

    `disputed`: see `staple`.
    """
    labels = staple(masks, disputed=disputed).labels
    return np.array([_mean_iou(labels, mask, background) for mask in masks])


def by_function(
    record: Record, masks: Masks, rng: np.random.Generator, *, function: Callable[[Image, Mask], float]
) -> Scores:
    """Ask `function(image, mask)`, any critic of yours, for each mask on its own."""
    return np.array([float(function(record.image, mask)) for mask in masks], dtype=np.float64)


def gold_of(record: Record, masks: Masks) -> Mask:
    """Return the record's gold mask, or say that there is none to judge by."""
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
