"""Synthetic records: an image like a photograph, gold, and masks with shifted outlines."""

from dataclasses import dataclass, replace

import cv2
import numpy as np

from segdpo.data import ImageFile, Pair, Record, decode_image
from segdpo.masks import Mask


@dataclass(frozen=True)
class Scenes:
    """Synthetic records, with their images as files of one kind (".png" or ".jpg")."""

    records: list[Record]
    suffix: str
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Record:
        return replace(self.records[index], image=decode_image(self.image_file(index).data, ""))

    def image_file(self, index: int) -> ImageFile:
        """Return the image as a file would contain it."""
        bgr = cv2.cvtColor(self.records[index].image, cv2.COLOR_RGB2BGR)
        return ImageFile(self.suffix, cv2.imencode(self.suffix, bgr)[1].tobytes())


def smooth(rng: np.random.Generator, size: int, knots: int, spread: float = 1.0) -> np.ndarray:
    """Draw a smooth field around 0, float32 [size, size]."""
    field = rng.normal(0, spread, (knots, knots)).astype(np.float32)
    return np.asarray(cv2.resize(field, (size, size), interpolation=cv2.INTER_CUBIC))


def make_record(number: int, size: int, masks: int, classes: int) -> Record:
    """Make an image like a photograph (smooth light, edges, sensor noise), gold, and masks with shifted outlines."""
    rng = np.random.default_rng(number)
    gold = np.argmax([smooth(rng, size, 12) for _ in range(classes)], axis=0).astype(np.uint8)
    colours = rng.integers(30, 220, (classes, 3))
    light = 1 + smooth(rng, size, 6, 0.15)[..., None]
    image = colours[gold] * light + rng.normal(0, 2, (size, size, 3))
    return Record(
        id=f"scene {number}",
        image=cv2.GaussianBlur(image.clip(0, 255).astype(np.uint8), (3, 3), 0),
        masks=np.stack([_wobble(gold, rng) for _ in range(masks)]),
        mask_names=tuple(f"rater{k}" for k in range(masks)),
        pairs=tuple(Pair(k, k + 1) for k in range(masks - 1)),
        gold=gold,
    )


def _wobble(mask: Mask, rng: np.random.Generator) -> Mask:
    size = len(mask)
    y, x = np.mgrid[:size, :size].astype(np.float32)
    x, y = x + smooth(rng, size, 24, 4), y + smooth(rng, size, 24, 4)
    return np.asarray(cv2.remap(mask, x, y, cv2.INTER_NEAREST, borderMode=cv2.BORDER_REPLICATE))
