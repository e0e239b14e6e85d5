"""Records as items of preference training: one item is one view of an image with its pairs, or with its ranking."""

from collections.abc import Sequence
from itertools import combinations
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from segdpo.data.batch import collate_pairs, collate_rankings
from segdpo.data.item import PairItem, RankingItem
from segdpo.data.record_source import RecordSource
from segdpo.data.sampling import Draw
from segdpo.data.transforms import IGNORE, Pipeline
from segdpo.data.views import RecordViews
from segdpo.pairs.record import Pair, Record

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
