"""How much masks overlap, class by class: what judges, consensus and reports share.

`background` says whether class 0 counts like any other. False (the default everywhere): class 0 is what is left
over, as in binary masks. True: class 0 is a class of its own, as "Sky" is in street scenes.
"""

import numpy as np
from jaxtyping import Float64, UInt8

from segdpo.checks import IGNORE

Mask = UInt8[np.ndarray, "height width"]
Masks = UInt8[np.ndarray, "masks height width"]

EXACT_IN_FLOAT32 = 2**24


class CannotJudge(ValueError):  # noqa: N818 -- says what happened; callers count it and go on
    """One record cannot be judged (no gold, nothing left to judge); others may be."""


def classes_in(*masks: np.ndarray, background: bool) -> list[int]:
    """Return the classes that any of the masks shows, without ignore and, unless `background`, without 0."""
    shown = np.zeros(256, dtype=bool)
    for mask in masks:
        shown |= np.bincount(mask.ravel(), minlength=256) > 0
    shown[IGNORE] = False
    shown[0] &= background
    return [int(label) for label in np.flatnonzero(shown)]


def class_overlaps(gold: Mask, mask: Mask, *, background: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return (intersection, pixels of gold, pixels of mask) for each class present in either, valid pixels only."""
    valid = (gold != IGNORE) & (mask != IGNORE)
    table = np.bincount(gold[valid].astype(np.int64) * 256 + mask[valid], minlength=256 * 256).reshape(256, 256)
    both, of_gold, of_mask = table.diagonal(), table.sum(1), table.sum(0)
    present = (of_gold + of_mask) > 0
    present[0] &= background
    return both[present], of_gold[present], of_mask[present]


def iou_matrix(masks: Masks, *, background: bool = False) -> Float64[np.ndarray, "K K"]:
    """Return the IoU of every mask with every other: mean over the classes present in either of the two.

    Pixels that are ignored in either mask are left out. Two masks without any class agree: 1.
    """
    flat = masks.reshape(len(masks), -1)
    number = np.float32 if flat.shape[1] < EXACT_IN_FLOAT32 else np.float64
    valid = (flat != IGNORE).astype(number)
    total = np.zeros((len(masks), len(masks)))
    present = np.zeros_like(total)
    for label in classes_in(masks, background=background):
        inside = (flat == label).astype(number)
        both = (inside @ inside.T).astype(np.float64)
        # [i, j]: pixels of i's class where j has an opinion.
        area = (inside @ valid.T).astype(np.float64)
        union = area + area.T - both
        total += np.divide(both, union, out=np.zeros_like(both), where=union > 0)
        present += union > 0
    return np.divide(total, present, out=np.ones_like(total), where=present > 0)


def mean_pairwise_iou(masks: Masks, *, background: bool = False) -> float:
    """Return the mean IoU over all pairs of different numbers; NaN for fewer than two masks."""
    if len(masks) < 2:
        return float("nan")
    return float(iou_matrix(masks, background=background)[np.triu_indices(len(masks), 1)].mean())


def differ(first: Mask, second: Mask) -> bool:
    """Say whether two masks disagree on any pixel that neither ignores; only there can a preference teach."""
    return bool(((first != second) & (first != IGNORE) & (second != IGNORE)).any())
