"""Metrics of masks against gold, by image and class."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torchmetrics import Metric

from segdpo.checks import IGNORE, check_choice, check_same_shape
from segdpo.metrics.surface import SURFACE_METRICS, make_surface, measure_surfaces

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


__all__ = ["HIGHER_IS_BETTER", "MASK_METRICS", "MaskQuality", "mean_over_classes", "measure_masks"]

MASK_METRICS = ("iou", "dice", "boundary_iou", "hd95", "surface_dice", "precision", "recall", "components")
HIGHER_IS_BETTER: Mapping[str, bool | None] = dict.fromkeys(MASK_METRICS, True) | {"hd95": False, "components": None}
"""None: 0 is best."""

# Sums of the metrics between 0 and 1 are kept in units of 2**-32, those of the others in coarser ones.
COARSE = 2**20


def measure_masks(
    prediction: Tensor,
    gold: Tensor,
    classes: int,
    *,
    background: bool = False,
    spacing: Sequence[float] | None = None,
    tolerance: float = 2.0,
    boundary_width: int | None = None,
    names: Sequence[str] = MASK_METRICS,
) -> dict[str, Tensor]:
    """Return each metric of each image and class, float32 [B, classes]; NaN does not count.

    `iou` and `dice`, averaged by `mean_over_classes`, are those of `per_image_overlap`, bit for bit.

    Args:
        prediction: class ids, uint8 or int64 [B, H, W] or [B, D, H, W]; 255 = ignore.
        gold: class ids like `prediction`.
        classes: how many there are, class 0 included: 2 for binary masks.
        background: whether class 0 counts like any other; False: it is what is left over.
        spacing: the size of a pixel along each axis, for `hd95` and `surface_dice`; left out: 1.
        tolerance: how far contours may be apart for `surface_dice`, in units of `spacing`.
        boundary_width: of the bands of `boundary_iou`, in pixels; left out: 2 % of the image's diagonal.
        names: what to measure, of MASK_METRICS.

    >>> gold, prediction = torch.tensor([[[1, 1, 0, 0]]]), torch.tensor([[[1, 0, 0, 1]]])
    >>> found = measure_masks(prediction, gold, classes=2, names=["precision", "components"])
    >>> found["precision"], found["components"]
    (tensor([[   nan, 0.5000]]), tensor([[nan, 1.]]))
    """
    for name in names:
        check_choice("names", name, MASK_METRICS)
    counts = count_classes(prediction, gold, classes, background)
    found: dict[str, Tensor] = {name: getattr(counts, name) for name in names if name not in SURFACE_METRICS}
    asked = [name for name in names if name in SURFACE_METRICS]
    if asked:
        surface = make_surface(tuple(gold.shape[1:]), spacing, tolerance, boundary_width)
        found |= measure_surfaces(prediction, gold, classes, background, surface, asked)
    return {name: found[name] for name in names}


class MaskQuality(Metric):
    """Mean of each metric over all images of an epoch, over all processes, overall and for each class.

    `compute()` is {name: mean over images of the mean over classes, f"{name}_per_class": [classes], "images": how many
    counted, "images_per_class": [classes]}. The options are those of `measure_masks`.

    >>> quality = MaskQuality(classes=2, names=["iou"])
    >>> quality.update(torch.tensor([[[1, 1, 0]]]), torch.tensor([[[1, 0, 0]]]))
    >>> quality.compute()["iou"], quality.compute()["iou_per_class"]
    (tensor(0.5000), tensor([   nan, 0.5000]))
    """

    full_state_update = False
    sums: Tensor
    counts: Tensor

    def __init__(
        self,
        classes: int,
        *,
        background: bool = False,
        spacing: Sequence[float] | None = None,
        tolerance: float = 2.0,
        boundary_width: int | None = None,
        names: Sequence[str] = MASK_METRICS,
    ) -> None:
        super().__init__()
        self.names = tuple(names)
        self._measure = partial(
            measure_masks,
            classes=classes,
            background=background,
            spacing=spacing,
            tolerance=tolerance,
            boundary_width=boundary_width,
            names=self.names,
        )
        # Whole numbers, so that sums are the same in any order; distances in pixels of the finest axis.
        self._units = {name: float(ONE) for name in MASK_METRICS}
        self._units |= {"components": COARSE, "hd95": COARSE / min([1.0] if spacing is None else spacing)}
        # A row for each metric: the mean over classes, then each class.
        for state in ("sums", "counts"):
            self.add_state(state, torch.zeros(len(self.names), 1 + classes, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, prediction: Tensor, gold: Tensor) -> None:
        """Add the images of a batch: class ids [B, *spatial]."""
        found = self._measure(prediction, gold)
        for row, name in enumerate(self.names):
            values = torch.cat([mean_over_classes(found[name])[:, None], found[name]], dim=1)
            self.sums[row] += (values.nan_to_num(0) * self._units[name]).round().long().sum(0)
            self.counts[row] += (~values.isnan()).sum(0)

    def compute(self) -> dict[str, Tensor]:
        """Return the means so far."""
        images = self.counts.amax(0)
        found = {"images": images[0], "images_per_class": images[1:]}
        for row, name in enumerate(self.names):
            means = self.sums[row] / self._units[name] / self.counts[row]
            found |= {name: means[0], f"{name}_per_class": means[1:]}
        return found
