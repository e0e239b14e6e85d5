"""Data sets of items: views of records with their pairs, a ranking, or one target each."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from itertools import combinations
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float32
from numpy.typing import NDArray
from torch.utils.data import Dataset

from segdpo.checks import IGNORE
from segdpo.data.batches import (
    Item,
    PairItem,
    RankingItem,
    SupervisedItem,
    collate_pairs,
    collate_rankings,
    collate_supervised,
)
from segdpo.data.record import Pair, Record, RecordSource, check_record, info_of, record_rng
from segdpo.data.sampling import Draw
from segdpo.data.transforms import Pipeline, View
from segdpo.files import DataError
from segdpo.masks import Mask, Masks

Unjudged = Literal["skip", "error"]
Weights = NDArray[np.float64]

log = logging.getLogger(__name__)


class RecordViews(Dataset[Item]):
    """Records of a source as seen through a pipeline; its subclasses decide what an item is.

    Args:
        source: the records.
        pipeline: makes a view of an image and its masks.
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
        self.unjudged: Unjudged = "skip"

    def usable(self, number: int) -> bool:
        """Return whether record `number` of the source has what an item is made of."""
        return True

    def __len__(self) -> int:
        return len(self.indices)

    def read(self, draw: int | Draw) -> tuple[Record, int]:
        """Return the record, checked, and the number of the view."""
        item, epoch = draw if isinstance(draw, tuple) else (draw, 0)
        record = self.source[int(self.indices[item])]
        return check_record(record, self.source.classes), epoch if self.views is None else epoch % self.views

    def masks_of(self, record: Record) -> Masks:
        """Return the masks of a record that training reads."""
        return record.masks

    def check_classes(self) -> None:
        """Raise a DataError if the masks of two classes hold 0 and 255 alone: 255 means ignore, so nothing is learned.

        Records are read until one shows class 1, mostly the first. Of a set where 255 is rare, 64 are read.
        """
        if len(self.source.classes) != 2:
            return
        for numbers in (self.indices[:: len(self.indices) // 64 + 1], self.indices):
            first = None
            for number in numbers:
                record = self.source[int(number)]
                masks = self.masks_of(record)
                if ((masks > 0) & (masks != IGNORE)).any():
                    return
                first = record.id if first is None and {0, IGNORE} == set(np.unique(masks).tolist()) else first
            if first is None:
                return
        raise DataError(
            f"Expected class 1 ({self.source.classes[1]!r}) in some mask but got 0 and 255 alone, as in record "
            f"{first!r}, and 255 means ignore, so that nothing would be learned; if 255 is the object, read the masks "
            "with values={255: 1} (data.values='{255: 1}').",
            "class",
        )

    def show(self, record: Record, view: int, masks: Masks | Sequence[Mask]) -> tuple[View, Mask | None]:
        """Return the view of the image and of `masks`, and gold under the same geometry."""
        rng = self._rng(record, view, "view")
        # Of the record and not of `masks`, so that the view does not depend on what an item shows of it.
        objects = partial(objects_of, record)
        if record.gold is None:
            return self.pipeline(record.image, masks, rng, objects), None
        shown = self.pipeline(record.image, [*masks, record.gold], rng, objects)
        return replace(shown, masks=shown.masks[:-1]), shown.masks[-1]

    def _rng(self, record: Record, view: int, purpose: str) -> np.random.Generator:
        return record_rng(self.seed, record.id, f"{purpose} {view}")

    def _keep(self, lack: str, unjudged: Unjudged, fix: str = "mine preferences for them (segdpo mine)") -> None:
        """Keep the records that are usable; count and log how many are not, or refuse them."""
        self.unjudged = unjudged
        kept = np.fromiter((self.usable(int(number)) for number in self.indices), bool, len(self.indices))
        self.skipped = int((~kept).sum())
        if not self.skipped:
            return
        first = info_of(self.source, int(self.indices[kept.argmin()])).id
        found = f"{self.skipped} of {len(kept)} records have {lack}, the first {first!r}"
        if unjudged == "error" or not kept.any():
            raise DataError(
                f"Expected every record to be usable but {found}; {fix}"
                + (', or leave them out with unjudged="skip".' if kept.any() else "."),
                "preference",
            )
        log.warning("%s; they are skipped.", found)
        self.indices = self.indices[kept]


class PreferenceDataset(RecordViews):
    """Item = one view of an image and its pairs; a record with a ranking and no pairs gives every pair of the ranking.

    For the arguments not named here see RecordViews.

    Args:
        pairs_per_image: draw that many pairs for each view; None: all.
        unjudged: records without preferences are skipped and counted in `skipped` ("skip"), or refused ("error").
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
        self._keep("no preference", unjudged)

    def usable(self, number: int) -> bool:
        """Return whether record `number` of the source has a pair or a ranking."""
        info = info_of(self.source, number, preferences=True)
        return bool(info.pairs or (info.ranking or 0) > 1)

    def __getitem__(self, draw: int | Draw) -> PairItem:
        record, view = self.read(draw)
        pairs = pairs_of(record)
        if self.pairs_per_image is not None and self.pairs_per_image < len(pairs):
            drawn = self._rng(record, view, "pairs").choice(len(pairs), self.pairs_per_image, replace=False)
            pairs = [pairs[number] for number in sorted(drawn)]
        named = np.array([(pair.chosen, pair.rejected) for pair in pairs], np.int64).reshape(-1, 2)
        # Only masks that occur in a pair go through the geometry, each once.
        numbers, places = np.unique(named, return_inverse=True)
        places = places.reshape(-1, 2)
        shown, gold = self.show(record, view, [record.masks[number] for number in numbers])
        known = shown.masks != IGNORE
        counted = np.array([bool((known[a] & known[b]).any()) for a, b in places], bool)
        return PairItem(
            id=record.id,
            view=view,
            image=shown.image,
            valid=shown.valid,
            gold=gold,
            masks=shown.masks,
            numbers=numbers,
            pairs=places[counted],
            weight=np.array([pair.weight for pair in pairs], np.float32)[counted],
            dropped=int((~counted).sum()),
        )


class RankingDataset(RecordViews):
    """Item = one view of an image and `length` of its ranked masks, best first.

    For the arguments not named here see RecordViews.

    Args:
        length: how many masks; of longer rankings that many are drawn for each view.
        unjudged: records with shorter rankings are skipped and counted in `skipped` ("skip"), or refused ("error").
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
        self._keep(f"no ranking of {length} masks", unjudged)

    def usable(self, number: int) -> bool:
        """Return whether record `number` of the source has a ranking of `length` masks or more."""
        return (info_of(self.source, number, preferences=True).ranking or 0) >= self.length

    def __getitem__(self, draw: int | Draw) -> RankingItem:
        record, view = self.read(draw)
        kept = self._rng(record, view, "ranking").choice(len(record.ranking), self.length, replace=False)
        numbers = np.array(record.ranking, np.int64)[np.sort(kept)]
        shown, gold = self.show(record, view, [record.masks[number] for number in numbers])
        return RankingItem(
            id=record.id,
            view=view,
            image=shown.image,
            valid=shown.valid,
            gold=gold,
            masks=shown.masks,
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


def objects_of(record: Record) -> Bool[np.ndarray, "height width"]:
    """Return where any of the record's masks, or gold if it has none, shows another class than 0."""
    masks = record.masks if len(record.masks) or record.gold is None else record.gold[None]
    found = np.zeros(record.image.shape[:2], bool)
    for mask in masks:
        found |= (mask > 0) & (mask != IGNORE)
    return found


_TARGETS = ("gold", "none", "any", "mean", "first", "chosen", "consensus")
_SOFT_TARGETS = ("mean", "chosen", "consensus")


class SupervisedDataset(RecordViews):
    """Item = one view of an image and its target. For the arguments not named here see RecordViews.

    Args:
        target: which masks of a record make its target:

            * "gold"; records without it are skipped and counted in `skipped`;
            * "none": there is none, and no mask is read: images that a reward alone looks at;
            * "first": the first of its masks: one rater's, where it is always the same one's;
            * "any": one of its masks, drawn for each view: learning from several raters one at a time;
            * a mask's name;
            * "mean": the share of its masks with each class, float32 [classes, H, W];
            * "chosen": the mask that was preferred; of several pairs, the shares of their chosen masks by the pairs'
              weights;
            * "consensus": the shares of all ranked masks, a better mask with more weight: see `rank_weights`.
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
        if target == "gold":
            self._keep("no gold", "skip", 'choose another target, such as "any", or draw some gold masks')

    def usable(self, number: int) -> bool:
        """Return whether record `number` of the source has gold, if that is the target; others are not looked for."""
        return self.target != "gold" or bool(info_of(self.source, number, gold=True).gold)

    def masks_of(self, record: Record) -> Masks:
        """Return the masks of a record that a target is made of."""
        if self.target in ("gold", "none"):
            return record.masks[:0] if record.gold is None else record.gold[None]
        return self._masks_of_target(record, 0)[0]

    def __getitem__(self, draw: int | Draw) -> SupervisedItem:
        record, view = self.read(draw)
        masks, weights = self._masks_of_target(record, view)
        shown, gold = self.show(record, view, masks)
        if self.target == "none":
            target: NDArray[np.uint8] | NDArray[np.float32] = np.full(shown.valid.shape, IGNORE, np.uint8)
            known: NDArray[np.bool_] = np.ones(shown.valid.shape, bool)
        elif self.target in _SOFT_TARGETS:
            classes = len(self.source.classes)
            target = class_shares(shown.masks, classes, weights)
            known = np.asarray(target.any(0), bool)
        else:
            # Gold comes with every view; taking it through the geometry twice would only cost time.
            target = gold if self.target == "gold" and gold is not None else shown.masks[0]
            known = target != IGNORE
        return SupervisedItem(
            id=record.id, view=view, image=shown.image, valid=shown.valid & known, gold=gold, target=target
        )

    def _masks_of_target(self, record: Record, view: int) -> tuple[Masks, Weights | None]:
        """Return the masks that make the target, and the weight of each; None: all the same."""
        if self.target == "none" or (self.target == "gold" and record.gold is not None):
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
        if self.target not in _TARGETS and self.target in record.mask_names:
            return record.masks[[record.mask_names.index(self.target)]], None
        raise DataError(
            f"Expected a target {self.target!r} in record {record.id!r} but it has gold: "
            f"{'yes' if record.gold is not None else 'no'}, masks: {', '.join(record.mask_names) or 'none'}, "
            f"{len(record.pairs)} pairs, a ranking of {len(record.ranking)}; "
            'set target to "first", "any", "mean", "gold" or one of these names.',
            "preference",
        )


def class_shares(
    masks: Masks, classes: int, weights: Weights | None = None
) -> Float32[np.ndarray, "classes height width"]:
    """Return the share of the masks that have each class at a pixel, of those that do not ignore it; 0 where all do.

    Args:
        masks: class ids uint8 [K, H, W], 255 = ignore.
        classes: how many there are.
        weights: of the masks, [K]; left out: all the same.

    >>> masks = np.array([[[0, 1, 255]], [[1, 1, 255]]], np.uint8)
    >>> class_shares(masks, 2)[1].tolist()
    [[0.5, 1.0, 0.0]]
    >>> class_shares(masks, 2, np.array([3.0, 1.0]))[1].tolist()
    [[0.25, 1.0, 0.0]]
    """
    each = np.ones(len(masks)) if weights is None else weights
    votes = np.stack([np.tensordot(each, masks == number, 1) for number in range(classes)])
    total = votes.sum(0)
    return np.asarray(votes / np.where(total > 0, total, 1), np.float32)


def rank_weights(masks: int) -> Weights:
    """Return 2(K − r)/(K(K + 1)) for the ranks r = 0 (best) … K − 1: falling linearly, with sum 1.

    >>> rank_weights(3).tolist()
    [0.5, 0.3333333333333333, 0.16666666666666666]
    """
    return np.arange(masks, 0, -1) * 2 / (masks * (masks + 1))
