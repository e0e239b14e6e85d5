"""How good masks are, image by image and class by class: overlap, contours, numbers of parts.

What empty masks give:

| the class is | value |
|---|---|
| in neither mask on valid pixels, or is class 0 and `background` is off | NaN: does not count |
| in one mask only | the worst: 0; HD95: the diagonal of the image; `components`: its parts, + or − |
| in both, but neither has a contour beside valid pixels | measures of contours: NaN |

So an empty prediction of an object that is there never improves a mean. Pixels that are 255 in either mask are left
out.
"""

from collections.abc import Mapping, Sequence
from functools import partial

import torch
from torch import Tensor
from torchmetrics import Metric

from segdpo.checks import check_choice
from segdpo.metrics.overlap import ONE, count_classes, mean_over_classes
from segdpo.metrics.surface import SURFACE_METRICS, make_surface, measure_surfaces

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
