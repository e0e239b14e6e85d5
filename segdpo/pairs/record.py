"""One image, its masks, and who prefers what: the value that sources, judges, stores and data sets exchange."""

from dataclasses import dataclass, field

import numpy as np
from jaxtyping import UInt8

Image = UInt8[np.ndarray, "height width channels"]
Mask = UInt8[np.ndarray, "height width"]
Masks = UInt8[np.ndarray, "masks height width"]


@dataclass(frozen=True)
class Pair:
    """Mask number `chosen` of a record is preferred to mask number `rejected`; `weight` says how surely."""

    chosen: int
    rejected: int
    weight: float = 1.0


@dataclass(frozen=True, eq=False)
class Record:
    """An image with K candidate masks (255 = ignore) and the preferences between them.

    `pairs` and `ranking` (mask numbers, best first) may both be empty: nothing judged yet. `gold` is the truth where
    it is known; it serves judges and evaluation and is never a candidate. `group` is what must stay in one split
    (patient, frame, sequence); `split` is "train", "val", "test" or "" (not yet split).
    """

    id: str
    image: Image
    masks: Masks
    mask_names: tuple[str, ...]
    pairs: tuple[Pair, ...] = ()
    ranking: tuple[int, ...] = ()
    gold: Mask | None = None
    group: str = ""
    split: str = ""
    meta: dict[str, str] = field(default_factory=dict)
