"""Images with gold for evaluation: one view each, in batches of equal size; images without gold are counted."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from segdpo.checks import IGNORE
from segdpo.data.batches import SupervisedBatch, SupervisedItem, collate_supervised
from segdpo.data.record import RecordSource
from segdpo.data.transforms import Pipeline
from segdpo.data.views import Box, RecordViews, box_of, probes_of
from segdpo.masks import Mask


@dataclass(frozen=True, eq=False)
class GoldBatch:
    """A batch of views, the numbers of its records in the source, and gold at the images' own size.

    `boxes`, where asked for, are the parts of the views that show the images.
    """

    batch: SupervisedBatch
    numbers: list[int]
    golds: list[Mask]
    boxes: list[Box]


class GoldBatches:
    """Batches of view 0 of each image, in order; an image is never filled up to the size of its neighbours.

    What a network says of an image then does not depend on which others are in its batch. `without_gold` holds the
    ids of the images that were passed over, as far as the iteration has come.

    Args:
        source: the records.
        pipeline: what makes the view of an image; with `native` it may only resize and fill up, else a DataError says
            so.
        indices: numbers of the records.
        batch_size: images a batch, at most.
        seed: of the views, for a pipeline that draws.
        native: give `boxes`, with which logits can be taken back to the image's own size.
    """

    def __init__(
        self,
        source: RecordSource,
        pipeline: Pipeline,
        indices: Sequence[int] | NDArray[np.uint32],
        *,
        batch_size: int = 8,
        seed: int = 0,
        native: bool = False,
    ) -> None:
        self._views = _GoldViews(source, pipeline, indices, views=1, seed=seed)
        self.batch_size, self.native = batch_size, native
        self.without_gold: list[str] = []

    def __iter__(self) -> Iterator[GoldBatch]:
        self.without_gold = []
        group: list[_Found] = []
        for place in range(len(self._views)):
            found = self._views.look(place, native=self.native)
            if isinstance(found, str):
                self.without_gold.append(found)
                continue
            if group and (len(group) == self.batch_size or group[0].item.image.shape != found.item.image.shape):
                yield _joined(group)
                group = []
            group.append(found)
        if group:
            yield _joined(group)


@dataclass(frozen=True, eq=False)
class _Found:
    item: SupervisedItem
    number: int
    gold: Mask
    box: Box | None


class _GoldViews(RecordViews):
    def look(self, place: int, *, native: bool) -> _Found | str:
        """Return the view of an image and its gold, or its id if it has none."""
        record, view = self._open(place)
        if record.gold is None:
            return record.id
        size = record.gold.shape
        seen, gold = self._look(record, view, probes_of(size) if native else record.masks[:0])
        assert gold is not None
        item = SupervisedItem(
            id=record.id, view=view, image=seen.image, valid=seen.valid & (gold != IGNORE), gold=gold, target=gold
        )
        box = box_of(record.id, seen, size) if native else None
        return _Found(item, int(self.indices[place]), record.gold, box)


def _joined(group: Sequence[_Found]) -> GoldBatch:
    return GoldBatch(
        collate_supervised([found.item for found in group]),
        [found.number for found in group],
        [found.gold for found in group],
        [found.box for found in group if found.box is not None],
    )
