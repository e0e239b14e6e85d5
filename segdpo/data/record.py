"""A record: one image, its masks and preferences; and what serves records."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import UInt8

from segdpo.masks import Mask, Masks


def record_rng(seed: int, record_id: str, purpose: str) -> np.random.Generator:
    """Return the generator of (seed, record, purpose): the same three give the same numbers, anywhere.

    >>> bool(record_rng(0, "a", "mine").random() == record_rng(0, "a", "mine").random())
    True
    """
    # Not hash(): Python salts it anew in every process.
    digest = hashlib.sha256(f"{seed}\0{purpose}\0{record_id}".encode("utf-8", "surrogatepass")).digest()
    return np.random.default_rng(np.frombuffer(digest, dtype=np.uint32))


Image = UInt8[np.ndarray, "height width channels"]


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


@dataclass(frozen=True, eq=False)
class Candidates:
    """K masks of one image, uint8 [K, H, W] with 255 = ignore, and a name for each.

    A name is "source" or "source-variant" ("tta-flip_x"): reports put together what shares the part before the "-".
    """

    masks: Masks
    names: tuple[str, ...]

    def __post_init__(self) -> None:
        """Refuse what no judge and no store could use."""
        if self.masks.dtype != np.uint8 or self.masks.ndim != 3:
            raise ValueError(
                "Expected candidate masks as uint8 class ids of shape [K, H, W] "
                f"but got {self.masks.dtype} of shape {self.masks.shape}."
            )
        if len(self.names) != len(self.masks):
            raise ValueError(f"Expected one name a mask but got {len(self.names)} names for {len(self.masks)} masks.")


MaskSource = Callable[[Record, np.random.Generator], Candidates]


@dataclass(frozen=True)
class RecordInfo:
    """What splitting needs to know of a record: its id, what it must stay with, and the split it came with, if any.

    `pairs` is how many pairs it has, `ranking` how long its ranking is; None = not known without decoding it. A source
    that says so saves every training run from decoding all of its images once.
    """

    id: str
    group: str = ""
    split: str = ""
    pairs: int | None = None
    ranking: int | None = None


class RecordSource(Protocol):
    """A data set: `source[i]` for i in 0 … len − 1 decodes one record; the same i always gives the same record.

    `classes` names the classes in the order of their ids: ("background", "object") for binary masks.
    """

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes; a mask's pixels are below their number, or 255."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Record: ...


@runtime_checkable
class DescribesRecords(Protocol):
    """A source that can say what a record is without decoding its pixels; optional, see `info_of`."""

    def describe(self, index: int, /) -> RecordInfo:
        """Return id, group and split of record `index`."""
        ...


def info_of(source: RecordSource, index: int, *, preferences: bool = False) -> RecordInfo:
    """Return what a record is; decodes it only if the source cannot `describe` it.

    With `preferences`, the numbers of pairs and of ranked masks are never None.
    """
    if isinstance(source, DescribesRecords):
        info = source.describe(index)
        if not preferences or (info.pairs is not None and info.ranking is not None):
            return info
    record = source[index]
    return RecordInfo(record.id, record.group, record.split, len(record.pairs), len(record.ranking))
