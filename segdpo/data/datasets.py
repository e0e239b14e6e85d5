"""Data sets of items: pairs or rankings for preference training, one target an image for supervised training."""

from collections.abc import Sequence
from itertools import combinations
from typing import Literal

import numpy as np
from jaxtyping import Float32
from numpy.typing import NDArray

from segdpo.checks import IGNORE
from segdpo.data.batches import (
    PairItem,
    RankingItem,
    SupervisedItem,
    collate_pairs,
    collate_rankings,
    collate_supervised,
)
from segdpo.data.record import Pair, Record, RecordSource
from segdpo.data.sampling import Draw
from segdpo.data.transforms import Pipeline
from segdpo.data.views import RecordViews
from segdpo.files import DataError
from segdpo.masks import Masks

Unjudged = Literal["skip", "error"]


class PreferenceDataset(RecordViews):
    """Item = one view of an image and its pairs; a record with a ranking and no pairs gives every pair of the ranking.

    `pairs_per_image` draws that many pairs anew for each view (None: all). Records without preferences are skipped
    and counted in `skipped`, or refused with `unjudged="error"`. For the other arguments see RecordViews.
    """

    collate = staticmethod(collate_pairs)

    def __init__(
        self,
        source: RecordSource,
        pipeline: Pipeline,
        indices: Sequence[int] | NDArray[np.uint32] | None = None,
        *,
        views: int | None = None,
        seed: int = 0,
        pairs_per_image: int | None = None,
        unjudged: Unjudged = "skip",
    ) -> None:
        super().__init__(source, pipeline, indices, views=views, seed=seed)
        if pairs_per_image is not None and pairs_per_image < 1:
            raise ValueError(f"Expected at least 1 pair an image, or None for all, but got {pairs_per_image}.")
        self.pairs_per_image = pairs_per_image
        self._keep(lambda info: bool(info.pairs or (info.ranking or 0) > 1), "no preference", unjudged)

    def __getitem__(self, draw: int | Draw) -> PairItem:
        record, view = self._open(draw)
        pairs = pairs_of(record)
        if self.pairs_per_image is not None and self.pairs_per_image < len(pairs):
            drawn = self._rng(record, view, "pairs").choice(len(pairs), self.pairs_per_image, replace=False)
            pairs = [pairs[number] for number in sorted(drawn)]
        named = np.array([(pair.chosen, pair.rejected) for pair in pairs], np.int64).reshape(-1, 2)
        # Only masks that occur in a pair are worth the geometry.
        numbers, places = np.unique(named, return_inverse=True)
        seen, gold = self._look(record, view, record.masks[numbers])
        known = seen.masks != IGNORE
        places = places.reshape(-1, 2)
        judged = np.array([bool((known[a] & known[b]).any()) for a, b in places], bool)
        return PairItem(
            id=record.id,
            view=view,
            image=seen.image,
            valid=seen.valid,
            gold=gold,
            masks=seen.masks,
            numbers=numbers,
            pairs=places[judged],
            weight=np.array([pair.weight for pair in pairs], np.float32)[judged],
            dropped=int((~judged).sum()),
        )


class RankingDataset(RecordViews):
    """Item = one view of an image and `length` of its ranked masks, best first.

    Longer rankings are thinned at random, anew for each view; records with shorter ones are skipped and counted in
    `skipped`, or refused with `unjudged="error"`. For the other arguments see RecordViews.
    """

    collate = staticmethod(collate_rankings)

    def __init__(
        self,
        source: RecordSource,
        pipeline: Pipeline,
        indices: Sequence[int] | NDArray[np.uint32] | None = None,
        *,
        length: int,
        views: int | None = None,
        seed: int = 0,
        unjudged: Unjudged = "skip",
    ) -> None:
        super().__init__(source, pipeline, indices, views=views, seed=seed)
        if length < 2:
            raise ValueError(f"Expected a ranking of at least 2 masks but got length {length}.")
        self.length = length
        self._keep(lambda info: (info.ranking or 0) >= length, f"no ranking of {length} masks", unjudged)

    def __getitem__(self, draw: int | Draw) -> RankingItem:
        record, view = self._open(draw)
        kept = self._rng(record, view, "ranking").choice(len(record.ranking), self.length, replace=False)
        numbers = np.array(record.ranking, np.int64)[np.sort(kept)]
        seen, gold = self._look(record, view, record.masks[numbers])
        return RankingItem(
            id=record.id,
            view=view,
            image=seen.image,
            valid=seen.valid,
            gold=gold,
            masks=seen.masks,
            numbers=numbers,
        )


def pairs_of(record: Record) -> list[Pair]:
    """Return the record's pairs; if it has none, every pair that its ranking implies.

    >>> image, masks = np.zeros((1, 1, 3), np.uint8), np.zeros((3, 1, 1), np.uint8)
    >>> ranked = Record("a", image, masks, ("x", "y", "z"), ranking=(2, 0, 1))
    >>> [(pair.chosen, pair.rejected) for pair in pairs_of(ranked)]
    [(2, 0), (2, 1), (0, 1)]
    """
    return list(record.pairs) or [Pair(better, worse) for better, worse in combinations(record.ranking, 2)]


Weights = NDArray[np.float64]
WHOLE = ("gold", "any", "mean", "first", "chosen", "consensus")
SHARED = ("mean", "chosen", "consensus")


class SupervisedDataset(RecordViews):
    """Item = one view of an image and its target. For the arguments not named here see RecordViews.

    `target` is "gold"; "first" (the first of the record's masks: one rater's, where it is always the same one's); "any"
    (one of its masks, drawn anew for each view: learning from several raters one at a time); "mean" (the share of
    raters for each class, float32 [classes,H,W]); or a mask's name. Of records with preferences also "chosen" (the mask
    that was preferred; of several pairs, the shares of their chosen masks by the pairs' weights) and "consensus" (the
    share of all ranked masks, the better the heavier: see `rank_weights`).
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
        masks, weights = self._targets(record, view)
        seen, gold = self._look(record, view, masks)
        if self.target in SHARED:
            classes = len(self.source.classes)
            target: NDArray[np.uint8] | NDArray[np.float32] = rater_shares(seen.masks, classes, weights)
            known = target.any(0)
        else:
            # Gold comes with every view; looking at it twice would only cost.
            target = gold if self.target == "gold" and gold is not None else seen.masks[0]
            known = target != IGNORE
        return SupervisedItem(
            id=record.id, view=view, image=seen.image, valid=seen.valid & known, gold=gold, target=target
        )

    def _targets(self, record: Record, view: int) -> tuple[Masks, Weights | None]:
        """Return the masks that make the target, and what each weighs; None: all the same."""
        if self.target == "gold" and record.gold is not None:
            return record.masks[:0], None
        if self.target == "mean" and len(record.masks):
            return record.masks, None
        if self.target == "any" and len(record.masks):
            number = self._rng(record, view, "rater").integers(len(record.masks))
            return record.masks[[number]], None
        if self.target == "first" and len(record.masks):
            return record.masks[:1], None
        if self.target == "chosen" and record.pairs:
            return record.masks[[pair.chosen for pair in record.pairs]], np.array([p.weight for p in record.pairs])
        if self.target == "consensus" and record.ranking:
            return record.masks[list(record.ranking)], rank_weights(len(record.ranking))
        if self.target not in WHOLE and self.target in record.mask_names:
            return record.masks[[record.mask_names.index(self.target)]], None
        raise DataError(
            f"Expected a target {self.target!r} in record {record.id!r} but it has gold: "
            f"{'yes' if record.gold is not None else 'no'}, masks: {', '.join(record.mask_names) or 'none'}, "
            f"{len(record.pairs)} pairs, a ranking of {len(record.ranking)}; "
            'set target to "first", "any", "mean", "gold" or one of these names.',
            "preference",
        )


def rater_shares(
    masks: Masks, classes: int, weights: Weights | None = None
) -> Float32[np.ndarray, "classes height width"]:
    """Return the share of the masks that say each class, of those that say anything there; 0 where none does.

    >>> masks = np.array([[[0, 1, 255]], [[1, 1, 255]]], np.uint8)
    >>> rater_shares(masks, 2)[1].tolist()
    [[0.5, 1.0, 0.0]]
    >>> rater_shares(masks, 2, np.array([3.0, 1.0]))[1].tolist()
    [[0.25, 1.0, 0.0]]
    """
    each = np.ones(len(masks)) if weights is None else weights
    votes = np.stack([np.tensordot(each, masks == number, 1) for number in range(classes)])
    said = votes.sum(0)
    return np.asarray(votes / np.where(said > 0, said, 1), np.float32)


def rank_weights(masks: int) -> Weights:
    """Return 2(K − r)/(K(K + 1)) for the ranks r = 0 (best) … K − 1: falling in a line, 1 in sum.

    >>> rank_weights(3).tolist()
    [0.5, 0.3333333333333333, 0.16666666666666666]
    """
    return np.arange(masks, 0, -1) * 2 / (masks * (masks + 1))
