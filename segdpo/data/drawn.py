"""Built-in data sets: images that are drawn when they are read, with exact gold and masks of simulated annotators."""

import operator
from dataclasses import replace

import numpy as np

from segdpo.data.record import Image, MaskSource, Record, RecordInfo, record_rng
from segdpo.masks import Mask


class Drawn:
    """Records that are drawn from (seed, index); subclasses say how, in `scene`.

    Record i depends on (seed, size, i) alone: not on `count`, the order of access or the process. A record takes
    milliseconds to make, each time it is read.

    Args:
        count: how many records.
        size: side of the square images in pixels.
        seed: another seed is another data set.
        masks: a source of masks `(record, rng) -> Candidates`, called with a record that has gold and no masks;
            None: records with gold alone.
        keep: hold records in memory once they are made, in each process.
    """

    name: str
    classes: tuple[str, ...]
    smallest = 32

    def __init__(self, count: int, size: int, seed: int, masks: MaskSource | None, keep: bool) -> None:
        if count < 1 or size < self.smallest:
            raise ValueError(
                f"Expected count ≥ 1 and size ≥ {self.smallest} (thin parts vanish below) but got {count} and {size}."
            )
        if masks is not None and not callable(masks):
            raise TypeError(
                f"Expected masks to be a source of masks, a function (record, rng) -> Candidates, but got {masks!r}; "
                "leave it out for the simulated annotators, masks=None for gold alone."
            )
        self.count, self.size, self.seed, self.masks = count, size, seed, masks
        self.keep, self._kept = keep, dict[int, Record]()

    def scene(self, rng: np.random.Generator) -> tuple[Image, Mask]:
        """Return an image [size, size, 3] and its exact mask."""
        raise NotImplementedError

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Record:
        if index in self._kept:
            return self._kept[index]
        record = self._make(index)
        if self.keep:
            self._kept[index] = record
        return record

    def _make(self, index: int) -> Record:
        record_id = self.describe(index).id
        image, gold = self.scene(record_rng(self.seed, record_id, "scene"))
        none = np.zeros((0, self.size, self.size), np.uint8)
        record = Record(id=record_id, image=image, masks=none, mask_names=(), gold=gold)
        if self.masks is None:
            return record
        candidates = self.masks(record, record_rng(self.seed, record_id, "masks"))
        return replace(record, masks=candidates.masks, mask_names=candidates.names)

    def describe(self, index: int) -> RecordInfo:
        """Return the record's id without making its picture."""
        index = operator.index(index)
        if not 0 <= index < self.count:
            raise IndexError(f"Expected an index from 0 to {self.count - 1} but got {index}.")
        return RecordInfo(f"{self.name}-{self.seed}-{index:05d}", gold=True)
