"""Overlap of predicted masks with gold, image by image: IoU and Dice."""

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
        prediction: class ids, uint8 or int64 [B, H, W].
        gold: class ids like `prediction`.
        classes: how many there are, class 0 included: 2 for binary masks.
        background: whether class 0 counts like any other; False: it is what is left over.

    >>> overlap = per_image_overlap(torch.tensor([[[1, 1, 0]]]), torch.tensor([[[1, 0, 0]]]), classes=2)
    >>> overlap["iou"], overlap["dice"]
    (tensor([0.5000]), tensor([0.6667]))
    """
    check_same_shape("prediction", prediction, "gold", gold)
    valid = (prediction != IGNORE) & (gold != IGNORE)
    _check_classes(prediction, gold, valid, classes)
    of_gold = _count(gold, valid, classes)
    of_prediction = _count(prediction, valid, classes)
    both = _count(gold, valid & (prediction == gold), classes)
    area = of_gold + of_prediction
    present = area > 0
    present[:, 0] &= background
    shown = present.sum(1)
    # 0 / 0 is NaN, as promised, where no class is shown.
    iou = (both / (area - both).clamp(min=1) * present).sum(1) / shown
    dice = (2 * both / area.clamp(min=1) * present).sum(1) / shown
    return {"iou": iou, "dice": dice}


def _count(labels: Tensor, inside: Tensor, classes: int) -> Tensor:
    """Return how many pixels each image has of each class, int64 [B, classes]."""
    images = len(labels)
    first = torch.arange(images, device=labels.device)[:, None] * classes
    numbers = torch.where(inside.flatten(1), labels.flatten(1).long() + first, images * classes)
    return torch.bincount(numbers.flatten(), minlength=images * classes + 1)[:-1].view(images, classes)


def _check_classes(prediction: Tensor, gold: Tensor, valid: Tensor, classes: int) -> None:
    for name, labels in (("prediction", prediction), ("gold", gold)):
        if labels.is_floating_point() or labels.ndim != 3:
            raise ValueError(
                f"Expected {name} as class ids [B, H, W] but got {str(labels.dtype).removeprefix('torch.')} of shape "
                f"{tuple(labels.shape)}; take the argmax of logits, or threshold one channel at 0."
            )
        highest = int(labels.masked_fill(~valid, 0).max()) if labels.numel() else 0
        if highest >= classes:
            raise ValueError(
                f"{name} has class {highest} but there are {classes} classes, 0 to {classes - 1}; "
                f"set classes to {highest + 1}, or mark class {highest} as ignore ({IGNORE})."
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
        """Add the images of a batch: class ids [B, H, W]."""
        overlap = per_image_overlap(prediction, gold, self.classes, self.background)
        self.iou += _sum(overlap["iou"])
        self.dice += _sum(overlap["dice"])
        self.images += overlap["iou"].isfinite().sum()

    def compute(self) -> dict[str, Tensor]:
        """Return the means so far."""
        return {"iou": self.iou / ONE / self.images, "dice": self.dice / ONE / self.images, "images": self.images}


def _sum(values: Tensor) -> Tensor:
    return (values.nan_to_num(0) * ONE).round().long().sum()
