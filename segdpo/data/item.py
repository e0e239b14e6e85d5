"""One view of one record, before it joins a batch: what data sets return and batch.py joins."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float32, Int64

from segdpo.pairs.record import Mask, Masks


@dataclass(frozen=True, eq=False)
class Item:
    """What every item has; `valid` is False where the pixel came from outside the image."""

    id: str
    view: int
    image: Float32[np.ndarray, "channels height width"]
    valid: Bool[np.ndarray, "height width"]
    gold: Mask | None


@dataclass(frozen=True, eq=False)
class PairItem(Item):
    """The masks that occur in pairs, each once; `pairs` (chosen, rejected) index `masks`, `numbers` are the record's.

    `dropped` counts the pairs left out since no pixel of theirs was valid.
    """

    masks: Masks
    numbers: Int64[np.ndarray, "masks"]
    pairs: Int64[np.ndarray, "pairs two"]
    weight: Float32[np.ndarray, "pairs"]
    dropped: int


@dataclass(frozen=True, eq=False)
class RankingItem(Item):
    """K masks, best first."""

    masks: Masks
    numbers: Int64[np.ndarray, "masks"]


@dataclass(frozen=True, eq=False)
class SupervisedItem(Item):
    """A target: class ids uint8 [H,W], or shares of the raters float32 [classes,H,W]."""

    target: Mask | Float32[np.ndarray, "classes height width"]
