"""Metrics of masks against gold, by image and class.

`measure_masks` gives every metric of each image and class, `per_image_overlap` IoU and Dice of each image;
`MaskQuality` and `Overlap` are torchmetrics: their means over an epoch.

Everywhere, masks are class ids and pixels that are 255 in either mask are left out. A class in one mask only has the
worst value. A class in neither is NaN and does not count: counted as 1 it would flatter, as 0 it would punish.
"""

from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric

from segdpo.checks import check_choice
from segdpo.masks import CONTOUR_METRICS, contour_options, count_classes, measure_contours

MASK_METRICS = ("iou", "dice", "boundary_iou", "hd95", "surface_dice", "precision", "recall", "components")
HIGHER_IS_BETTER: Mapping[str, bool | None] = dict.fromkeys(MASK_METRICS, True) | {"hd95": False, "components": None}
"""None: 0 is best."""

# Sums are integers, which are the same in any order, so that neither the batch size nor the number of processes shows:
# metrics between 0 and 1 in units of 2**-32, the others in coarser ones.
FINE, COARSE = 2**32, 2**20


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
    found: dict[str, Tensor] = {name: getattr(counts, name) for name in names if name not in CONTOUR_METRICS}
    of_contours = [name for name in names if name in CONTOUR_METRICS]
    if of_contours:
        options = contour_options(tuple(gold.shape[1:]), spacing, tolerance, boundary_width)
        values = {name: np.full((len(gold), classes), np.nan, dtype=np.float32) for name in of_contours}
        labels = (masks.to("cpu", torch.uint8).numpy() for masks in (prediction, gold))
        for image, (predicted, truth) in enumerate(zip(*labels, strict=True)):
            for label, measures in measure_contours(predicted, truth, options, of_contours, background=background):
                for name, value in measures.items():
                    values[name][image, label] = value
        found |= {name: torch.from_numpy(array).to(gold.device) for name, array in values.items()}
    return {name: found[name] for name in names}


def per_image_overlap(prediction: Tensor, gold: Tensor, classes: int, background: bool = False) -> dict[str, Tensor]:
    """Return IoU and Dice of each image, float32 [B]: the mean over the classes present in gold or prediction.

    An image without any class in either is NaN.

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


def mean_over_classes(values: Tensor) -> Tensor:
    """Return the mean of each row [B, classes] over what is not NaN; NaN if nothing is.

    >>> mean_over_classes(torch.tensor([[torch.nan, 0.5, 1.0]]))
    tensor([0.7500])
    """
    counts = ~values.isnan()
    # 0 / 0 is NaN, as promised.
    return torch.where(counts, values, 0).sum(1) / counts.sum(1)


class MaskQuality(Metric):
    """Mean of each metric over all images of an epoch, over all processes, overall and for each class.

    `compute()` is {name: mean over images of the mean over classes, f"{name}_per_class": [classes], "images": how many
    counted, "images_per_class": [classes]}.

    Args:
        classes: how many there are, class 0 included: 2 for binary masks.
        background: whether class 0 counts like any other; False: it is what is left over.
        spacing: see `measure_masks`, as for `tolerance` and `boundary_width`.
        tolerance: see `measure_masks`.
        boundary_width: see `measure_masks`.
        names: what to measure, of MASK_METRICS.

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
        # Distances are in pixels of the finest axis.
        self._units = {name: float(FINE) for name in MASK_METRICS}
        self._units |= {"components": COARSE, "hd95": COARSE / min([1.0] if spacing is None else spacing)}
        # A row for each metric: the mean over classes, then each class.
        for state in ("sums", "counts"):
            self.add_state(state, torch.zeros(len(self.names), 1 + classes, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, prediction: Tensor, gold: Tensor) -> None:
        """Add the images of a batch: class ids [B, *spatial]."""
        found = self._measure(prediction, gold)
        for row, name in enumerate(self.names):
            values = torch.cat([mean_over_classes(found[name])[:, None], found[name]], dim=1)
            self.sums[row] += _whole(values, self._units[name]).sum(0)
            self.counts[row] += (~values.isnan()).sum(0)

    def compute(self) -> dict[str, Tensor]:
        """Return the means so far."""
        images = self.counts.amax(0)
        found = {"images": images[0], "images_per_class": images[1:]}
        for row, name in enumerate(self.names):
            means = self.sums[row] / self._units[name] / self.counts[row]
            found |= {name: means[0], f"{name}_per_class": means[1:]}
        return found


class Overlap(Metric):
    """Mean IoU and Dice over all images of an epoch, over all processes; images that are NaN do not count.

    MaskQuality with the names iou and dice gives the same bits; this one keeps nothing by class, so that `classes` may
    be set when the first logits are seen. `compute()` is {"iou", "dice", "images"}: two means (NaN if no image counts)
    and how many images counted.

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
        # Not in place: after Trainer.validate the sums are tensors of inference mode, which Trainer.fit cannot change.
        self.iou = self.iou + _whole(overlap["iou"], FINE).sum()
        self.dice = self.dice + _whole(overlap["dice"], FINE).sum()
        self.images = self.images + overlap["iou"].isfinite().sum()

    def compute(self) -> dict[str, Tensor]:
        """Return the means so far."""
        return {"iou": self.iou / FINE / self.images, "dice": self.dice / FINE / self.images, "images": self.images}


def _whole(values: Tensor, units: float) -> Tensor:
    """Return values as whole numbers of 1/units, NaN as 0."""
    return (values.nan_to_num(0) * units).round().long()
