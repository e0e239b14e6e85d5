"""Records with gold for evaluations: sizes that differ, images without gold, images with nothing in them."""

from dataclasses import dataclass, replace

import numpy as np

from segdpo.data.record import Record
from segdpo.data.shapes import Shapes


class Discs:
    """Bright discs on a dark ground; `lacking`: records without gold; `empty`: records without a disc."""

    classes = ("background", "object")

    def __init__(self, count, sizes=((32, 32),), lacking=(), empty=()):
        self.count, self.sizes, self.lacking, self.empty = count, sizes, lacking, empty

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        height, width = self.sizes[index % len(self.sizes)]
        y, x = np.mgrid[:height, :width]
        disc = (y - height / 2) ** 2 + (x - width / 3) ** 2 < (4 + index) ** 2
        if index in self.empty:
            disc[:] = False
        noise = np.random.default_rng(index).integers(0, 90, (height, width, 3))
        return Record(
            id=f"disc {index:02d}",
            image=(noise + 160 * disc[..., None]).astype(np.uint8),
            masks=np.zeros((0, height, width), np.uint8),
            mask_names=(),
            gold=None if index in self.lacking else disc.astype(np.uint8),
        )


class Swapped(Discs):
    """The same classes in another order."""

    classes = ("object", "background")


def shapes_with_gold_of(golden=(), **options):
    """The embedded data in which only the records of these numbers have gold."""
    return WithGoldOf(Shapes(**options), tuple(golden))


@dataclass(frozen=True)
class WithGoldOf:
    source: Shapes
    golden: tuple[int, ...]

    @property
    def classes(self):
        return self.source.classes

    def __len__(self):
        return len(self.source)

    def __getitem__(self, index):
        record = self.source[index]
        return record if index in self.golden else replace(record, gold=None)
