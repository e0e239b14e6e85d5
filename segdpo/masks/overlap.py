"""Overlap of masks, class by class: IoU, Dice, precision and recall from one table of counts.

`count_classes` counts batches of tensors on any device; `mean_iou` and `mean_dice` are the same in float64 for two
NumPy masks; `iou_matrix` is the IoU of all pairs of K masks at once.

Everywhere, pixels that either mask ignores (255) are left out, and `background` says whether class 0 counts like any
other. False (the default): class 0 is what is left over, as in binary masks. True: class 0 is a class of its own, as
"sky" is in street scenes.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float64, UInt8
from torch import Tensor

from segdpo.checks import IGNORE, check_same_shape

Mask = UInt8[np.ndarray, "height width"]
Masks = UInt8[np.ndarray, "masks height width"]


@dataclass(frozen=True, eq=False)
class ClassCounts:
    """Pixels of each class in both masks and in either, [..., classes]; ratios are NaN for a class in neither mask.

    Ratios of integer counts are float32, those of float64 counts float64.
    """

    both: Tensor
    prediction: Tensor
    gold: Tensor
    present: Tensor

    @property
    def iou(self) -> Tensor:
        """|P ∩ G| / |P ∪ G|."""
        return self._ratio(self.both, self.prediction + self.gold - self.both)

    @property
    def dice(self) -> Tensor:
        """2|P ∩ G| / (|P| + |G|)."""
        return self._ratio(2 * self.both, self.prediction + self.gold)

    @property
    def precision(self) -> Tensor:
        """|P ∩ G| / |P|; 0 for an empty prediction of a class that gold has."""
        return self._ratio(self.both, self.prediction)

    @property
    def recall(self) -> Tensor:
        """|P ∩ G| / |G|; 0 for a predicted class that gold does not have."""
        return self._ratio(self.both, self.gold)

    def _ratio(self, part: Tensor, whole: Tensor) -> Tensor:
        return (part / whole.clamp(min=1)).masked_fill(~self.present, torch.nan)


def count_classes(prediction: Tensor, gold: Tensor, classes: int, background: bool = False) -> ClassCounts:
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
    return _count(prediction, gold, valid, classes, background)


def _count(prediction: Tensor, gold: Tensor, valid: Tensor, classes: int, background: bool) -> ClassCounts:
    # [image, class of gold, class of the prediction]: one pass over the pixels for all counts.
    first = torch.arange(len(gold), device=gold.device)[:, None] * classes**2
    cells = (gold.flatten(1).long() * classes).add_(prediction.flatten(1)).add_(first)
    cells = cells.masked_fill_(~valid.flatten(1), len(gold) * classes**2).flatten()
    table = torch.bincount(cells, minlength=len(gold) * classes**2 + 1)[:-1].view(-1, classes, classes)
    of_gold, of_prediction = table.sum(2), table.sum(1)
    present = of_gold + of_prediction > 0
    present[:, 0] &= background
    return ClassCounts(table.diagonal(dim1=1, dim2=2), of_prediction, of_gold, present)


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
    flat = masks.reshape(len(masks), -1)
    # Counts below 2**24 are exact in float32, whose products are faster.
    number = np.float32 if flat.shape[1] < 2**24 else np.float64
    valid = (flat != IGNORE).astype(number)
    total = torch.zeros(len(masks), len(masks), dtype=torch.float64)
    classes = torch.zeros_like(total)
    for label in _classes_in(masks, background):
        inside = (flat == label).astype(number)
        # [i, j]: pixels of the class in mask i that mask j does not ignore.
        both, area = (torch.from_numpy(inside @ other.T).double() for other in (inside, valid))
        counts = ClassCounts(both, area, area.T, area + area.T > 0)
        total += counts.iou.nan_to_num(0)
        classes += counts.present
    return np.asarray(torch.where(classes > 0, total / classes, 1.0).numpy())


def mean_pairwise_iou(masks: Masks, *, background: bool = False) -> float:
    """Return the mean IoU over all pairs of different masks; NaN for fewer than two masks."""
    if len(masks) < 2:
        return float("nan")
    return float(iou_matrix(masks, background=background)[np.triu_indices(len(masks), 1)].mean())


def differ(first: Mask, second: Mask) -> bool:
    """Return whether two masks differ on a pixel that neither ignores: only there does a preference give a gradient."""
    return bool(((first != second) & (first != IGNORE) & (second != IGNORE)).any())


def _count_pair(mask: Mask, gold: Mask, background: bool) -> ClassCounts:
    # Copies, since torch warns of arrays that it could not write to.
    prediction, truth = (torch.from_numpy(labels.copy())[None] for labels in (mask, gold))
    classes = 1 + max(int(np.where(labels == IGNORE, 0, labels).max(initial=0)) for labels in (mask, gold))
    counts = _count(prediction, truth, (prediction != IGNORE) & (truth != IGNORE), classes, background)
    return ClassCounts(counts.both.double(), counts.prediction.double(), counts.gold.double(), counts.present)


def _mean_of_present(values: Tensor) -> float:
    present = values[~values.isnan()].numpy()
    return float(present.mean()) if len(present) else float("nan")


def _classes_in(masks: Masks, background: bool) -> list[int]:
    """Return the classes that any of the masks shows, without ignore and, unless `background`, without 0."""
    shown = np.bincount(masks.ravel(), minlength=256) > 0
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
