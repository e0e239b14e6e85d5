"""Random and fixed views of a record, and where the image lies in them."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Bool, UInt8
from numpy.typing import NDArray
from torch.utils.data import Dataset

from segdpo.data.batches import Item
from segdpo.data.record import Record, RecordInfo, RecordSource, info_of, record_rng
from segdpo.data.sampling import Draw
from segdpo.data.transforms import Pipeline, View
from segdpo.data.validation import check_record
from segdpo.files import DataError
from segdpo.masks import Mask, Masks

Box = tuple[slice, slice]
# Below 255, which is ignore in every mask.
BASE = 251
LARGEST = BASE**2


def probes_of(size: tuple[int, ...]) -> UInt8[np.ndarray, "4 height width"]:
    """Return masks that hold each pixel's own row and column, each as two digits: views move them like any mask."""
    if max(size) > LARGEST:
        raise DataError(f"Expected an image of at most {LARGEST} pixels a side but got {size[0]}×{size[1]}.", "size")
    digits = (part for numbers in np.indices(size) for part in (numbers // BASE, numbers % BASE))
    return np.stack(list(digits)).astype(np.uint8)


def box_of(name: str, view: View, size: tuple[int, ...]) -> Box:
    """Return the part of a view that shows the image; refuse a view that shows it cut, turned or bent.

    `view.masks` are those of `probes_of(size)` under the view's geometry. In a view that only resizes and fills up,
    the pixel at r of h shows the row at the same share of the image, to within one of the image's pixels.
    """
    box = _bounds(view.valid)
    if box is not None:
        probes = view.masks[:, box[0], box[1]].astype(np.int64)
        found = BASE * probes[0] + probes[1], BASE * probes[2] + probes[3]
        if view.valid[box].all() and all(_in_proportion(found[axis], axis, size[axis]) for axis in (0, 1)):
            return box
    raise DataError(
        f"{name}: Expected an eval pipeline that shows the whole image, resized or filled up, but it cuts, turns or "
        "bends it, so that nothing can be measured at the image's own size; take transforms.eval without such "
        "steps (transforms=whole, transforms=resized), or measure the views as they are, without --native.",
        "size",
    )


def _bounds(valid: Bool[np.ndarray, "height width"]) -> Box | None:
    rows, columns = (np.flatnonzero(valid.any(axis)) for axis in (1, 0))
    if not len(rows):
        return None
    return slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)


def _in_proportion(found: np.ndarray, axis: int, size: int) -> bool:
    """Tell whether the places found run through the image evenly, to within a pixel of the image."""
    length = found.shape[axis]
    shares = (np.arange(length) + 0.5) / length
    expected = shares[:, None] if axis == 0 else shares[None]
    return bool((abs((found + 0.5) / size - expected) <= 1.01 / size).all())


log = logging.getLogger(__name__)


class RecordViews(Dataset[Item]):
    """Chosen records of a source as seen through a pipeline; its subclasses say what an item is made of.

    Args:
        source: the records.
        pipeline: what makes a view of an image and its masks.
        indices: numbers of the records to show, kept as uint32; left out: all.
        views: how many views an image has; None: a new one each epoch.
        seed: of the views, and of whatever else is drawn for an item.
    """

    def __init__(
        self,
        source: RecordSource,
        pipeline: Pipeline,
        indices: Sequence[int] | NDArray[np.uint32] | None = None,
        *,
        views: int | None = None,
        seed: int = 0,
    ) -> None:
        if views is not None and views < 1:
            raise ValueError(f"Expected at least 1 view an image, or None for a new one each epoch, but got {views}.")
        self.source, self.pipeline, self.views, self.seed = source, pipeline, views, seed
        self.indices: NDArray[np.uint32] = np.asarray(range(len(source)) if indices is None else indices, np.uint32)
        self.skipped = 0

    def __len__(self) -> int:
        return len(self.indices)

    def _open(self, draw: int | Draw) -> tuple[Record, int]:
        """Return the record, checked, and the number of the view."""
        item, epoch = draw if isinstance(draw, tuple) else (draw, 0)
        record = self.source[int(self.indices[item])]
        return check_record(record, self.source.classes), epoch if self.views is None else epoch % self.views

    def _rng(self, record: Record, view: int, purpose: str) -> np.random.Generator:
        return record_rng(self.seed, record.id, f"{purpose} {view}")

    def _look(self, record: Record, view: int, masks: Masks) -> tuple[View, Mask | None]:
        """Return the view of the image and of `masks`, and gold under the same geometry."""
        if record.gold is None:
            return self.pipeline(record.image, masks, self._rng(record, view, "view")), None
        seen = self.pipeline(record.image, np.concatenate([masks, record.gold[None]]), self._rng(record, view, "view"))
        return replace(seen, masks=seen.masks[:-1]), seen.masks[-1]

    def _keep(self, usable: Callable[[RecordInfo], bool], lack: str, otherwise: str) -> None:
        """Keep the records that are usable; count and say how many are not, or refuse them."""
        infos = (info_of(self.source, int(index), preferences=True) for index in self.indices)
        fit = np.fromiter((usable(info) for info in infos), bool, len(self.indices))
        self.skipped = int((~fit).sum())
        if not self.skipped:
            return
        first = info_of(self.source, int(self.indices[fit.argmin()])).id
        said = f"{self.skipped} of {len(fit)} records have {lack}, the first {first!r}"
        if otherwise == "error" or not fit.any():
            raise DataError(
                f"Expected every record to be usable but {said}; mine preferences for them (scripts/mine.py)"
                + (', or leave them out with unjudged="skip".' if fit.any() else "."),
                "preference",
            )
        log.warning("%s; they are skipped.", said)
        self.indices = self.indices[fit]
