"""Sources whose contents a test can work out by hand."""

from dataclasses import dataclass

import numpy as np

from segdpo.data.record import Pair, Record


@dataclass(frozen=True)
class Listed:
    """Records of a list; it cannot `describe` them."""

    records: list[Record]
    classes: tuple[str, ...] = ("background", "object")

    def __len__(self):
        return len(self.records)

    def __getitem__(self, index):
        return self.records[index]


def coordinates(height, width, masks):
    """An image whose red is 2x and green 2y, and masks that each tell x and y in a way of their own (below 251)."""
    y, x = np.mgrid[:height, :width]
    image = np.stack([2 * x, 2 * y, np.zeros_like(x)], -1).astype(np.uint8)
    return image, np.stack([x, y, *(encode(x, y, k) for k in range(masks - 2))]).astype(np.uint8)


def encode(x, y, k):
    return (x.astype(int) * (1 + k % 5) + y.astype(int) * (1 + k // 5) + 3 * k) % 251


def record(name="a", value=0, size=(8, 8), pairs=((0, 1),), ranking=(), masks=3, gold=True, **more):
    """Masks 0, 1, 2 … have the top 0, 1, 2 … rows set; gold is mask 2; the image is `value` all over."""
    rows = np.arange(size[0])[:, None] < np.arange(masks)[:, None, None]
    stack = np.broadcast_to(rows, (masks, *size)).astype(np.uint8)
    return Record(
        id=name,
        image=np.full((*size, 3), value, np.uint8),
        masks=stack,
        mask_names=tuple(f"rater{k}" for k in range(masks)),
        pairs=tuple(Pair(*pair) for pair in pairs),
        ranking=ranking,
        gold=stack[2] if gold else None,
        **more,
    )


def toys(count=12, size=(8, 8), **more):
    return Listed([record(f"toy{i}", value=i, size=size, **more) for i in range(count)])
