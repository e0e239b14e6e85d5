"""Records as items of supervised training: what the reference learns from before there is any preference."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float32
from numpy.typing import NDArray

from segdpo.data.batch import collate_supervised
from segdpo.data.errors import DataError
from segdpo.data.item import SupervisedItem
from segdpo.data.record_source import RecordSource
from segdpo.data.sampling import Draw
from segdpo.data.transforms import IGNORE, Pipeline
from segdpo.data.views import RecordViews
from segdpo.pairs.record import Masks, Record

WHOLE = ("gold", "any", "mean", "first")


class SupervisedDataset(RecordViews):
    """Item = one view of an image and its target. For the arguments not named here see RecordViews.

    `target` is "gold"; "first" (the first of the record's masks: one rater's, where it is always the same one's); "any"
    (one of its masks, drawn anew for each view: learning from several raters one at a time); "mean" (the share of
    raters for each class, float32 [classes,H,W]); or a mask's name.
    """

    collate = staticmethod(collate_supervised)

    def __init__(
        self,
        source: RecordSource,
        pipeline: Pipeline,
        indices: Sequence[int] | NDArray[np.uint32] | None = None,
        *,
        target: str = "gold",
        views: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(source, pipeline, indices, views=views, seed=seed)
        self.target = target

    def __getitem__(self, draw: int | Draw) -> SupervisedItem:
        record, view = self._open(draw)
        seen, gold = self._look(record, view, self._targets(record, view))
        if self.target == "mean":
            target: NDArray[np.uint8] | NDArray[np.float32] = rater_shares(seen.masks, len(self.source.classes))
            known = target.any(0)
        else:
            # Gold comes with every view; looking at it twice would only cost.
            target = gold if self.target == "gold" and gold is not None else seen.masks[0]
            known = target != IGNORE
        return SupervisedItem(
            id=record.id, view=view, image=seen.image, valid=seen.valid & known, gold=gold, target=target
        )

    def _targets(self, record: Record, view: int) -> Masks:
        if self.target == "gold" and record.gold is not None:
            return record.masks[:0]
        if self.target == "mean" and len(record.masks):
            return record.masks
        if self.target == "any" and len(record.masks):
            number = self._rng(record, view, "rater").integers(len(record.masks))
            return record.masks[[number]]
        if self.target == "first" and len(record.masks):
            return record.masks[:1]
        if self.target not in WHOLE and self.target in record.mask_names:
            return record.masks[[record.mask_names.index(self.target)]]
        raise DataError(
            f"Expected a target {self.target!r} in record {record.id!r} but it has gold: "
            f"{'yes' if record.gold is not None else 'no'}, masks: {', '.join(record.mask_names) or 'none'}; "
            'set target to "first", "any", "mean", "gold" or one of these names.',
            "preference",
        )


def rater_shares(masks: Masks, classes: int) -> Float32[np.ndarray, "classes height width"]:
    """Return the share of the masks that say each class, of those that say anything there; 0 where none does.

    >>> masks = np.array([[[0, 1, 255]], [[1, 1, 255]]], np.uint8)
    >>> rater_shares(masks, 2)[1].tolist()
    [[0.5, 1.0, 0.0]]
    """
    votes = np.stack([(masks == number).sum(0) for number in range(classes)]).astype(np.float32)
    return np.asarray(votes / np.maximum(votes.sum(0), 1), np.float32)
