"""The embedded data set: stained cells under a microscope, made on the fly from (seed, index), with exact gold."""

import operator
from dataclasses import replace

import numpy as np

from segdpo.data.record_source import RecordInfo
from segdpo.data.shapes_picture import paint
from segdpo.data.shapes_scene import draw_cells, gold_mask
from segdpo.pairs.annotators import annotate
from segdpo.pairs.candidates_value import MaskSource
from segdpo.pairs.record import Record
from segdpo.pairs.seeding import record_rng

CLASSES = {2: ("background", "object"), 4: ("background", "body", "nucleus", "process")}


class Shapes:
    """Images of touching, textured cells with thin processes, exact gold, and masks of cheap annotators.

    Record i depends on (seed, size, i) alone: not on `count`, the order of access or the process. The binary and the
    four-class variant show the same images. Nothing is kept: a record is made anew, in milliseconds, each time.

    Args:
        count: how many records.
        size: side of the square images in pixels, at least 32.
        seed: another seed is another data set.
        classes: 2 (background, object) or 4 (background, body, nucleus, process).
        masks: a source of masks `(record, rng) -> Candidates`, called with a record that has gold and no masks;
            None: records with gold alone.
        keep: hold records in memory once they are made (30 KB each at 64²), each process its own.

    >>> record = Shapes(count=10)[3]
    >>> record.id, record.image.shape, record.mask_names
    ('shapes-0-00003', (64, 64, 3), ('generous', 'polygon', 'missed_thin', 'merged'))
    """

    def __init__(
        self,
        count: int,
        size: int = 64,
        seed: int = 0,
        classes: int = 2,
        masks: MaskSource | None = annotate,
        keep: bool = False,
    ) -> None:
        if count < 1 or size < 32:
            raise ValueError(f"Expected count ≥ 1 and size ≥ 32 (thin parts vanish below) but got {count} and {size}.")
        if classes not in CLASSES:
            raise ValueError(f"Expected classes to be 2 (binary) or 4 but got {classes!r}.")
        if masks is not None and not callable(masks):
            raise TypeError(
                f"Expected masks to be a source of masks, a function (record, rng) -> Candidates, but got {masks!r}; "
                "leave it out for the cheap annotators, masks=None for gold alone."
            )
        self.count, self.size, self.seed, self.masks = count, size, seed, masks
        self.classes = CLASSES[classes]
        self.keep, self._kept = keep, dict[int, Record]()

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
        rng = record_rng(self.seed, record_id, "scene")
        cells = draw_cells(self.size, rng)
        record = Record(
            id=record_id,
            image=paint(cells, rng),
            masks=np.zeros((0, self.size, self.size), np.uint8),
            mask_names=(),
            gold=gold_mask(cells, len(self.classes)),
        )
        if self.masks is None:
            return record
        candidates = self.masks(record, record_rng(self.seed, record_id, "masks"))
        return replace(record, masks=candidates.masks, mask_names=candidates.names)

    def describe(self, index: int) -> RecordInfo:
        """Return the record's id without making its picture."""
        index = operator.index(index)
        if not 0 <= index < self.count:
            raise IndexError(f"Expected an index from 0 to {self.count - 1} but got {index}.")
        return RecordInfo(f"shapes-{self.seed}-{index:05d}")
