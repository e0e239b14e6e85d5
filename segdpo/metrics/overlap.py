"""Overlap of predicted masks with gold, image by image: IoU and Dice."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torchmetrics import Metric

from segdpo.checks import check_same_shape
from segdpo.regions import IGNORE

# One is 2**32: sums of integers are the same in any order, so neither the batch size nor the number of processes shows.
ONE = 2**32


def per_image_overlap(prediction: Tensor, gold: Tensor, classes: int, background: bool = False) -> dict[str, Tensor]:
    """Return IoU and Dice of each image, float32 [B]: the mean over the classes present in gold or prediction.

    Pixels that are 255 in either are left out. A class that gold has and the prediction lacks (or the other way
    round) counts 0. An image without any class in either is NaN: there is nothing to find, and nothing was found, so
    it does not count; averaging it as 1 would flatter, as 0 would punish.

    Args:
        prediction: class ids, uint8 or int64 [B, *spatial].
        gold: class ids like `prediction`.
        classes: how many there are, class 0 included: 2 for binary masks.
        background: whether class 0 counts like any other; False: it is what is left over.

    >>> overlap = per_image_overlap(torch.tensor([[[1, 1, 0]]]), torch.tensor([[[1, 0, 0]]]), classes=2)
    >>> overlap["iou"], overlap["dice"]
    (tensor([0.5000]), tensor([0.6667]))
    """
    counts = count_classes(prediction, gold, classes, background)
    return {"iou": mean_over_classes(counts.iou), "dice": mean_over_classes(counts.dice)}


@dataclass(frozen=True, eq=False)
class ClassCounts:
    """Pixels of each class in each image, int64 [B, classes]; ratios are NaN where the class is in neither mask."""

    both: Tensor
    prediction: Tensor
    gold: Tensor
    present: Tensor

    @property
    def iou(self) -> Tensor:
        """Intersection over union."""
        return self._share(self.both, self.prediction + self.gold - self.both)

    @property
    def dice(self) -> Tensor:
        """Twice the intersection over the sum of both areas."""
        return self._share(2 * self.both, self.prediction + self.gold)

    @property
    def precision(self) -> Tensor:
        """Share of the prediction that is right; 0 for an empty prediction of a class that is there."""
        return self._share(self.both, self.prediction)

    @property
    def recall(self) -> Tensor:
        """Share of gold that was found; 0 for a class that was invented."""
        return self._share(self.both, self.gold)

    def _share(self, part: Tensor, whole: Tensor) -> Tensor:
        return (part / whole.clamp(min=1)).masked_fill(~self.present, torch.nan)


def count_classes(prediction: Tensor, gold: Tensor, classes: int, background: bool = False) -> ClassCounts:
    """Count the pixels of each class that both masks have, and each of them; 255 in either is left out."""
    check_same_shape("prediction", prediction, "gold", gold)
    valid = (prediction != IGNORE) & (gold != IGNORE)
    _check_classes(prediction, gold, valid, classes)
    # [image, class of gold, class of the prediction]: one pass over the pixels for all counts.
    first = torch.arange(len(gold), device=gold.device)[:, None] * classes**2
    numbers = (gold.flatten(1).long() * classes).add_(prediction.flatten(1)).add_(first)
    numbers = numbers.masked_fill_(~valid.flatten(1), len(gold) * classes**2).flatten()
    table = torch.bincount(numbers, minlength=len(gold) * classes**2 + 1)[:-1].view(-1, classes, classes)
    of_gold, of_prediction = table.sum(2), table.sum(1)
    present = of_gold + of_prediction > 0
    present[:, 0] &= background
    return ClassCounts(table.diagonal(dim1=1, dim2=2), of_prediction, of_gold, present)


def mean_over_classes(values: Tensor) -> Tensor:
    """Return the mean of each row [B, classes] over what is not NaN; NaN if nothing is.

    >>> mean_over_classes(torch.tensor([[torch.nan, 0.5, 1.0]]))
    tensor([0.7500])
    """
    counts = ~values.isnan()
    # 0 / 0 is NaN, as promised.
    return torch.where(counts, values, 0).sum(1) / counts.sum(1)


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
        # As a volume of one slice every pixel would be contour.
        raise ValueError(
            f"Expected {name} as class ids [B, H, W] but got shape {shape}, with a channel or a single slice; "
            f"drop that dimension: {name}.squeeze(1)."
        )


class Overlap(Metric):
    """Mean IoU and Dice over all images of an epoch, over all processes; images that are NaN do not count.

    `compute()` is {"iou", "dice", "images"}: two means (NaN if no image counts) and how many images counted.

    >>> overlap = Overlap(classes=2)
    >>> overlap.update(torch.tensor([[[1, 1, 0]]]), torch.tensor([[[1, 0, 0]]]))
    >>> overlap.compute()["iou"]
    tensor(0.5000)
    """

    full_state_update = False
    higher_is_better = True
    iou: Tensor
    dice: Tensor
    images: Tensor

    def __init__(self, classes: int, background: bool = False) -> None:
        super().__init__()
        self.classes, self.background = classes, background
        for name in ("iou", "dice", "images"):
            self.add_state(name, torch.tensor(0), dist_reduce_fx="sum")

    def update(self, prediction: Tensor, gold: Tensor) -> None:
        """Add the images of a batch: class ids [B, *spatial]."""
        overlap = per_image_overlap(prediction, gold, self.classes, self.background)
        self.iou += _sum(overlap["iou"])
        self.dice += _sum(overlap["dice"])
        self.images += overlap["iou"].isfinite().sum()

    def compute(self) -> dict[str, Tensor]:
        """Return the means so far."""
        return {"iou": self.iou / ONE / self.images, "dice": self.dice / ONE / self.images, "images": self.images}


def _sum(values: Tensor) -> Tensor:
    return (values.nan_to_num(0) * ONE).round().long().sum()
