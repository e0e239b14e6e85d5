"""What the data sets of this package share: records of a source, each seen through a pipeline, view by view.

Ask with `dataset[i]`, or with `dataset[Draw(i, epoch)]`, as an EpochSampler does. A view depends on (seed, id, view)
alone, where view = epoch, or epoch modulo `views`: with n views the same n come again and again, so that reference
scores can be kept. View v of an image is the same in any order, split or process.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset

from segdpo.data.errors import DataError
from segdpo.data.item import Item
from segdpo.data.record_check import check_record
from segdpo.data.record_source import RecordInfo, RecordSource, info_of
from segdpo.data.sampling import Draw
from segdpo.data.transforms import Pipeline, View
from segdpo.pairs.record import Mask, Masks, Record
from segdpo.pairs.seeding import record_rng

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
                f"Expected every record to be usable but {said}; mine preferences for them (scripts/mine_pairs.py)"
                + (', or leave them out with unjudged="skip".' if fit.any() else "."),
                "preference",
            )
        log.warning("%s; they are skipped.", said)
        self.indices = self.indices[fit]
