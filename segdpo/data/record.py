"""A record: one image, its masks, and which of them are preferred. All of segdpo.data reads, shows or makes records.

    image     uint8 [H, W, C]
    masks     uint8 [K, H, W]     K candidate masks: class ids from 0 on, 255 = ignore
    gold      uint8 [H, W]        the true mask, where it is known
    pairs     Pair(chosen, rejected, weight): numbers of masks, 0 … K − 1
    ranking   numbers of masks, best first

A data set is any object with `classes`, `len(source)` and `source[i]`: see RecordSource. From record to batch:

    formats/     read records from files; `sources` opens, joins, cuts data sets; `shapes`, `vessels` draw their own
    transforms   one view of an image and all its masks
    datasets     a view and what training needs of it: pairs, a ranking, or a target
    batches      items joined to tensors
    datamodule   splits and loaders for Lightning
"""

import hashlib
import math
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import UInt8

from segdpo.checks import IGNORE
from segdpo.files import DataError
from segdpo.masks import Mask, Masks, bands

Image = UInt8[np.ndarray, "height width channels"]
SPLITS = ("train", "val", "test", "")


@dataclass(frozen=True)
class Pair:
    """Mask number `chosen` of a record is preferred to mask number `rejected`; `weight` says how surely."""

    chosen: int
    rejected: int
    weight: float = 1.0


@dataclass(frozen=True, eq=False)
class Record:
    """An image with K candidate masks and the preferences between them.

    Args:
        id: the name of the record, unique in its data set; may hold "/" for folders.
        image: uint8 [H, W, C].
        masks: class ids uint8 [K, H, W], 255 = ignore; K may be 0.
        mask_names: K different names, such as that of who drew the mask.
        pairs: may be empty, as may `ranking`: nothing has been preferred yet.
        ranking: mask numbers, best first.
        gold: the true mask uint8 [H, W]; serves judges and evaluation, and is never a candidate.
        group: what must stay in one split (patient, frame, sequence); "": the record is its own group.
        split: "train", "val", "test" or "" (not yet split).
        meta: further texts that travel with the record.
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


class RecordSource(Protocol):
    """A data set: `source[i]` for i in 0 … len − 1 decodes one record; the same i always gives the same record."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes in the order of their ids: ("background", "object") for binary masks."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Record: ...


@dataclass(frozen=True)
class RecordInfo:
    """What is known of a record without decoding it: what splitting needs, and how many preferences it has.

    `pairs` is how many pairs it has, `ranking` how long its ranking is, `gold` whether it has a gold mask; None: not
    known without decoding it.
    """

    id: str
    group: str = ""
    split: str = ""
    pairs: int | None = None
    ranking: int | None = None
    gold: bool | None = None


@runtime_checkable
class DescribesRecords(Protocol):
    """A source that can say what a record is without decoding its pixels; optional, see `info_of`."""

    def describe(self, index: int, /) -> RecordInfo:
        """Return what is known of record `index`."""
        ...


def info_of(source: RecordSource, index: int, *, preferences: bool = False, gold: bool = False) -> RecordInfo:
    """Return what is known of a record; decodes it only if the source cannot `describe` it.

    With `preferences`, `pairs` and `ranking` are never None, and with `gold`, `gold` is not: a record is also decoded
    if the source does not say them.
    """
    if isinstance(source, DescribesRecords):
        info = source.describe(index)
        needed = ((info.pairs, info.ranking) if preferences else ()) + ((info.gold,) if gold else ())
        if None not in needed:
            return info
    record = source[index]
    known = record.gold is not None
    return RecordInfo(record.id, record.group, record.split, len(record.pairs), len(record.ranking), known)


@dataclass(frozen=True, eq=False)
class Candidates:
    """K masks of one image, uint8 [K, H, W] with 255 = ignore, and a name for each.

    A name is "source" or "source-variant" ("tta-flip_x"): reports put together what shares the part before the "-".
    """

    masks: Masks
    names: tuple[str, ...]

    def __post_init__(self) -> None:
        """Refuse masks of another type or shape, and another number of names."""
        if self.masks.dtype != np.uint8 or self.masks.ndim != 3:
            raise ValueError(
                "Expected candidate masks as uint8 class ids of shape [K, H, W] "
                f"but got {self.masks.dtype} of shape {self.masks.shape}."
            )
        if len(self.names) != len(self.masks):
            raise ValueError(f"Expected one name a mask but got {len(self.names)} names for {len(self.masks)} masks.")


MaskSource = Callable[[Record, np.random.Generator], Candidates]
"""A function that makes candidate masks for a record."""


def record_rng(seed: int, record_id: str, purpose: str) -> np.random.Generator:
    """Return the generator of (seed, record, purpose): the same three give the same numbers, in any process.

    >>> bool(record_rng(0, "a", "mine").random() == record_rng(0, "a", "mine").random())
    True
    """
    # Not hash(): Python salts it differently in every process.
    digest = hashlib.sha256(f"{seed}\0{purpose}\0{record_id}".encode("utf-8", "surrogatepass")).digest()
    return np.random.default_rng(np.frombuffer(digest, dtype=np.uint32))


# What a record may hold. `where` opens a message, such as "manifest.jsonl, line 3: ".


def check_record(record: Record, classes: tuple[str, ...]) -> Record:
    """Return the record if id, sizes, class ids and preferences fit together; else raise a DataError that names it."""
    where = f"{check_id(record.id)}: "
    _check_image(record.image, where)
    _check_masks(record, classes, where)
    check_preferences(record, where)
    check_split(record.split, where)
    texts = (record.group, *(text for item in record.meta.items() for text in item))
    if not all(isinstance(text, str) and is_text(text) for text in texts):
        raise DataError(
            f"{where}Expected group and meta as text but got {record.group!r} and {record.meta!r}.", "manifest"
        )
    return record


def check_id(value: str, where: str = "") -> str:
    """Return `value` if it can be a record's id.

    Spaces, unicode and `a/b` (a folder inside the folder) are fine; an id that is empty, absolute, leaves the folder or
    holds control characters is not.
    """
    parts = value.split("/")
    if "\\" in value or any(part in ("", ".", "..") for part in parts) or not _printable(value):
        raise DataError(
            f"{where}Expected an id that stays inside its folder but got {value!r}; "
            "use letters, digits, spaces and single '/', without '..', '\\', a leading '/' or control characters.",
            "id",
        )
    return value


def check_mask_name(value: str, where: str = "") -> str:
    """Return `value` if it can name a mask: a folder's name, without the characters that separate names in a CSV."""
    if not value or value.startswith(".") or any(sign in value for sign in "/\\|>") or not _printable(value):
        raise DataError(
            f"{where}Expected a mask name that can be a folder's name but got {value!r}; "
            "leave out '/', '\\', '|', '>', a leading '.' and control characters.",
            "id",
        )
    return value


def check_split(value: str, where: str = "") -> str:
    """Return `value` if it is a split's name or "" (not yet split)."""
    if value not in SPLITS:
        raise DataError(f"{where}Expected split 'train', 'val', 'test' or '' but got {value!r}.", "manifest")
    return value


def check_classes(classes: tuple[str, ...] | list[str], where: str = "") -> tuple[str, ...]:
    """Return the class names as a tuple: 2 to 255 different, non-empty names, since 255 itself is ignore."""
    names = tuple(classes)
    proper = all(isinstance(name, str) and name and is_text(name) for name in names)
    if not (proper and 2 <= len(names) <= 255 and len(set(names)) == len(names)):
        raise DataError(f"{where}Expected 2 to 255 different class names but got {list(names)!r}.", "class")
    return names


def check_mask(mask: Mask, size: tuple[int, ...], classes: tuple[str, ...], where: str) -> Mask:
    """Return the mask if it has the image's size and holds only class ids and 255."""
    if mask.shape != size:
        raise DataError(
            f"{where}Expected a mask of the image's size {'×'.join(map(str, size))} (height × width) but got "
            f"{'×'.join(map(str, mask.shape))}; draw it on the image it belongs to.",
            "size",
        )
    if any(((mask[rows] >= len(classes)) & (mask[rows] != IGNORE)).any() for rows in bands(*size)):
        values = np.unique(mask)
        found = ", ".join(map(str, values[(values >= len(classes)) & (values != IGNORE)][:5]))
        raise DataError(
            f"{where}Expected class ids below {len(classes)} or 255 (ignore) but got {found}; "
            "add the class to `classes`, or map the value with `values`.",
            "class",
        )
    return mask


def check_preferences(record: Record, where: str) -> None:
    """Raise if a pair or the ranking names a mask that is not there, or prefers a mask to itself."""
    count = len(record.mask_names)
    for pair in record.pairs:
        if not (0 <= pair.chosen < count and 0 <= pair.rejected < count) or pair.chosen == pair.rejected:
            raise DataError(
                f"{where}Expected two different masks of {count} but got chosen {pair.chosen}, "
                f"rejected {pair.rejected}.",
                "preference",
            )
        if not (math.isfinite(pair.weight) and pair.weight >= 0):
            raise DataError(f"{where}Expected a finite weight of at least 0 but got {pair.weight}.", "preference")
    ranking = record.ranking
    if len(set(ranking)) != len(ranking) or len(ranking) == 1 or not all(0 <= k < count for k in ranking):
        raise DataError(
            f"{where}Expected a ranking of two or more different masks of {count} but got {list(ranking)}.",
            "preference",
        )


def is_text(value: str) -> bool:
    """Return whether a string can be written as UTF-8; JSON may name halves of characters (lone surrogates)."""
    try:
        # isascii() reads a flag of the string, which decides most cases.
        return value.isascii() or bool(value.encode())
    except UnicodeEncodeError:
        return False


def _printable(value: str) -> bool:
    """Return whether all characters can be in a file name: no control characters (Cc), no lone surrogates (Cs)."""
    # isprintable() is stricter and fast; what it refuses is looked at by category.
    return value.isprintable() or not any(unicodedata.category(character) in ("Cc", "Cs") for character in value)


def _check_image(image: Image, where: str) -> None:
    if image.dtype != np.uint8 or image.ndim != 3 or 0 in image.shape:
        raise DataError(f"{where}Expected an image uint8 [H, W, C] but got {image.dtype} {list(image.shape)}.", "size")


def _check_masks(record: Record, classes: tuple[str, ...], where: str) -> None:
    masks, names, size = record.masks, record.mask_names, record.image.shape[:2]
    if masks.dtype != np.uint8 or masks.ndim != 3 or len(masks) != len(names) or len(masks) > 255:
        raise DataError(
            f"{where}Expected uint8 [K, H, W] with K = {len(names)} (the mask names; at most 255) but got "
            f"{masks.dtype} {list(masks.shape)}.",
            "size",
        )
    if len(set(names)) != len(names):
        raise DataError(f"{where}Expected a different name for each mask but got {list(names)}.", "id")
    for name, mask in zip(names, masks, strict=True):
        check_mask(mask, size, classes, f"{where}mask {check_mask_name(name, where)!r}: ")
    if record.gold is not None:
        if record.gold.dtype != np.uint8:
            raise DataError(f"{where}Expected gold uint8 but got {record.gold.dtype}.", "size")
        check_mask(record.gold, size, classes, f"{where}gold: ")
