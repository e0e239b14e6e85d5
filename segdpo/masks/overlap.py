"""Overlap of masks, class by class: IoU, Dice, precision and recall from one table of counts.

`count_classes` counts batches of tensors on any device; `mean_iou` and `mean_dice` are the same in float64 for two
NumPy masks; `iou_matrix` is the IoU of all pairs of K masks at once. Only the counting of pixels differs between them.

Everywhere, pixels that either mask ignores (255) are left out, and `background` says whether class 0 counts like any
other. False (the default): class 0 is what is left over, as in binary masks. True: class 0 is a class of its own, as
"sky" is in street scenes.
"""

from dataclasses import dataclass
from typing import Any, Generic, TypeVar, cast

import numpy as np
import torch
from jaxtyping import Float64, UInt8
from numpy.typing import NDArray
from torch import Tensor

from segdpo.checks import IGNORE, check_same_shape
from segdpo.masks.large import bands, bands_of, count_values

Mask = UInt8[np.ndarray, "height width"]
Masks = UInt8[np.ndarray, "masks height width"]
Array = TypeVar("Array", Tensor, NDArray[Any])


@dataclass(frozen=True, eq=False)
class ClassCounts(Generic[Array]):
    """Pixels of each class in both masks and in either, [..., classes]; ratios are NaN for a class in neither mask.

    Ratios of integer tensors are float32, those of arrays and of float64 tensors float64.
    """

    both: Array
    prediction: Array
    gold: Array
    present: Array

    @property
    def iou(self) -> Array:
        """|P ∩ G| / |P ∪ G|."""
        return self._ratio(self.both, self.prediction + self.gold - self.both)

    @property
    def dice(self) -> Array:
        """2|P ∩ G| / (|P| + |G|)."""
        return self._ratio(2 * self.both, self.prediction + self.gold)

    @property
    def precision(self) -> Array:
        """|P ∩ G| / |P|; 0 for an empty prediction of a class that gold has."""
        return self._ratio(self.both, self.prediction)

    @property
    def recall(self) -> Array:
        """|P ∩ G| / |G|; 0 for a predicted class that gold does not have."""
        return self._ratio(self.both, self.gold)

    def _ratio(self, part: Array, whole: Array) -> Array:
        # Where whole is 0, so is part.
        ratio: Array = part / (whole + (whole == 0))
        where: Any = torch.where if isinstance(ratio, Tensor) else np.where
        return cast(Array, where(self.present, ratio, np.nan))


def count_classes(prediction: Tensor, gold: Tensor, classes: int, background: bool = False) -> ClassCounts[Tensor]:
    """Count the pixels of each class in each image.

    Args:
        prediction: class ids, uint8 or int64 [B, *spatial], 255 = ignore.
        gold: class ids like `prediction`.
        classes: how many there are, class 0 included.
        background: whether class 0 counts like any other.

    Returns:
        int64 counts [B, classes].

    >>> counts = count_classes(torch.tensor([[[1, 1, 0]]]), torch.tensor([[[1, 0, 0]]]), classes=2)
    >>> counts.iou, counts.recall
    (tensor([[   nan, 0.5000]]), tensor([[nan, 1.]]))
    """
    check_same_shape("prediction", prediction, "gold", gold)
    valid = (prediction != IGNORE) & (gold != IGNORE)
    _check_classes(prediction, gold, valid, classes)
    flat = gold.flatten(1), prediction.flatten(1), valid.flatten(1)
    parts = bands(flat[0].shape[1], len(gold))
    table = torch.zeros(len(gold), classes, classes, dtype=torch.int64, device=gold.device)
    for pixels in parts:
        table += _count_cells(classes, *(part[:, pixels] for part in flat))
    return _counts(table, background)


def _count_cells(classes: int, gold: Tensor, prediction: Tensor, valid: Tensor) -> Tensor:
    """Return how many valid pixels [B, n] have each class of gold and of the prediction: [B, classes, classes]."""
    # [image, class of gold, class of the prediction]: one pass over the pixels for all counts.
    first = torch.arange(len(gold), device=gold.device)[:, None] * classes**2
    cells = (gold.long() * classes).add_(prediction).add_(first)
    cells = cells.masked_fill_(~valid, len(gold) * classes**2).flatten()
    return torch.bincount(cells, minlength=len(gold) * classes**2 + 1)[:-1].view(-1, classes, classes)


def mean_iou(mask: Mask, gold: Mask, *, background: bool = False) -> float:
    """Return the IoU of two masks: the mean over the classes present in either, in float64; NaN if there is none.

    >>> mean_iou(np.array([[1, 1, 0]], np.uint8), np.array([[1, 0, 255]], np.uint8))
    0.5
    """
    return _mean_of_present(_count_pair(mask, gold, background).iou)


def mean_dice(mask: Mask, gold: Mask, *, background: bool = False) -> float:
    """Return the Dice coefficient of two masks: the mean over the classes present in either; NaN if there is none."""
    return _mean_of_present(_count_pair(mask, gold, background).dice)


def iou_matrix(masks: Masks, *, background: bool = False) -> Float64[np.ndarray, "K K"]:
    """Return the IoU of every mask with every other: mean over the classes present in either of the two.

    Two masks without any class agree: 1.
    """
    total = np.zeros((len(masks), len(masks)))
    classes = np.zeros_like(total)
    for label in _classes_in(masks, background):
        both, area = _joint_areas(masks, label)
        counts = ClassCounts(both, area, area.T, area + area.T > 0)
        total += np.nan_to_num(counts.iou)
        classes += counts.present
    return np.divide(total, classes, out=np.ones_like(total), where=classes > 0)


def _joint_areas(masks: Masks, label: int) -> tuple[Float64[np.ndarray, "K K"], Float64[np.ndarray, "K K"]]:
    """Return for masks i and j how many pixels of the class both have, and how many of i's are not ignored by j."""
    flat = masks.reshape(len(masks), -1)
    both, area = (np.zeros((len(masks), len(masks))) for _ in range(2))
    for pixels in bands(flat.shape[1], len(masks)):
        # Counts below 2**24 are exact in float32, whose products are faster; a band has fewer pixels.
        inside, valid = (part.astype(np.float32) for part in (flat[:, pixels] == label, flat[:, pixels] != IGNORE))
        both += inside @ inside.T
        area += inside @ valid.T
    return both, area


def mean_pairwise_iou(masks: Masks, *, background: bool = False) -> float:
    """Return the mean IoU over all pairs of different masks; NaN for fewer than two masks."""
    if len(masks) < 2:
        return float("nan")
    return float(iou_matrix(masks, background=background)[np.triu_indices(len(masks), 1)].mean())


def differ(first: Mask, second: Mask) -> bool:
    """Return whether two masks differ on a pixel that neither ignores: only there does a preference give a gradient."""
    return bool(((first != second) & (first != IGNORE) & (second != IGNORE)).any())


def _counts(table: Array, background: bool) -> ClassCounts[Array]:
    """Return the counts from `table` [B, classes, classes]: pixels by class of gold and class of the prediction."""
    of_gold, of_prediction = table.sum(2), table.sum(1)
    present = of_gold + of_prediction > 0
    present[:, 0] &= background
    return ClassCounts(table.diagonal(0, 1, 2), of_prediction, of_gold, present)


def _count_pair(mask: Mask, gold: Mask, background: bool) -> ClassCounts[NDArray[Any]]:
    tables = [_table(mask[rows], gold[rows]) for rows in bands_of(mask)]
    classes = max(map(len, tables), default=1)
    table = np.zeros((classes, classes), np.int64)
    for part in tables:
        table[: len(part), : len(part)] += part
    return _counts(table[None], background)


def _table(mask: Mask, gold: Mask) -> NDArray[Any]:
    """Return how many valid pixels have each class of gold and of the mask, up to the highest class of either."""
    # Tensors would take twice as long for small masks.
    valid = (mask != IGNORE) & (gold != IGNORE)
    truth, predicted = gold[valid], mask[valid]
    classes = 1 + max(int(truth.max(initial=0)), int(predicted.max(initial=0)))
    table = np.bincount(truth.astype(np.int64) * classes + predicted, minlength=classes**2)
    return table.reshape(classes, classes)


def _mean_of_present(values: NDArray[Any]) -> float:
    present = values[~np.isnan(values)]
    return float(present.mean()) if len(present) else float("nan")


def _classes_in(masks: Masks, background: bool) -> list[int]:
    """Return the classes that any of the masks shows, without ignore and, unless `background`, without 0."""
    shown = count_values(masks) > 0
    shown[IGNORE] = False
    shown[0] &= background
    return [int(label) for label in np.flatnonzero(shown)]


def _check_classes(prediction: Tensor, gold: Tensor, valid: Tensor, classes: int) -> None:
    for name, labels in (("prediction", prediction), ("gold", gold)):
        _check_labels(name, labels)
        low, high = (int(found) for found in labels.masked_fill(~valid, 0).aminmax()) if labels.numel() else (0, 0)
        if low < 0:
            raise ValueError(f"{name} has class {low}; classes count from 0, and ignored pixels are {IGNORE}.")
        if high >= classes:
            raise ValueError(
                f"{name} has class {high} but there are {classes} classes, 0 to {classes - 1}; "
                f"set classes to {high + 1}, or mark class {high} as ignore ({IGNORE})."
            )


def _check_labels(name: str, labels: Tensor) -> None:
    shape = tuple(labels.shape)
    if labels.is_floating_point() or labels.ndim not in (3, 4):
        raise ValueError(
            f"Expected {name} as class ids [B, H, W] or [B, D, H, W] but got "
            f"{str(labels.dtype).removeprefix('torch.')} of shape {shape}; take the argmax of logits, or threshold "
            "one channel at 0."
        )
    if labels.ndim == 4 and shape[1] == 1:
        # In a volume of one slice every pixel would be part of the contour.
        raise ValueError(
            f"Expected {name} as class ids [B, H, W] but got shape {shape}, with a channel or a single slice; "
            f"drop that dimension: {name}.squeeze(1)."
        )
