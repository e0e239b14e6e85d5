"""torchvision's OxfordIIITPet and VOCSegmentation as data sets with gold masks and no candidates yet.

torchvision's own classes find the files; download them with it first (docs/data.md).
"""

from pathlib import Path
from typing import Any, Literal

import numpy as np
from torchvision.datasets import OxfordIIITPet, VOCSegmentation

from segdpo.data.images import ImageFile, decode_image
from segdpo.data.mask_files.decode import decode_mask
from segdpo.data.record import Record, RecordInfo, check_id, check_mask
from segdpo.files import MAX_TEXT_BYTES, DataError, decode_text, read_file
from segdpo.masks import Mask

VOC_CLASSES = (
    *("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)


class PetDataset:
    """Oxford-IIIT Pet: the animal against the background.

    Args:
        root: the folder that torchvision's download was given.
        split: torchvision's, "trainval" or "test".
        border: the pixels at the animal's edge are 255 ("ignore"), or a third class ("class").
    """

    def __init__(
        self,
        root: str | Path,
        split: Literal["trainval", "test"] = "trainval",
        border: Literal["ignore", "class"] = "ignore",
    ):
        if border not in ("ignore", "class"):
            raise DataError(f"Expected border 'ignore' or 'class' but got {border!r}.", "class")
        self._set = _open(OxfordIIITPet, root, split=split, target_types="segmentation")
        self.classes = ("background", "pet", "border") if border == "class" else ("background", "pet")
        # Trimaps hold 1 (animal), 2 (background) and 3 (border). Other values become 254, which no class has.
        self._ids_of = np.full(256, 254, np.uint8)
        self._ids_of[[1, 2, 3]] = [1, 0, 2 if border == "class" else 255]
        base = Path(root) / "oxford-iiit-pet"
        listed = base / "annotations" / f"{split}.txt"
        lines = decode_text(read_file(listed, MAX_TEXT_BYTES), str(listed)).splitlines()
        # torchvision has read the same file, so no line is empty.
        self._ids = [check_id(line.split()[0], f"{listed}: ") for line in lines]
        self._images, self._trimaps = base / "images", base / "annotations" / "trimaps"
        self._split = "test" if split == "test" else ""

    def __len__(self) -> int:
        return len(self._set)

    def __getitem__(self, index: int) -> Record:
        gold = self._trimaps / f"{self._ids[index]}.png"
        return _record(self.image_path(index), gold, self.describe(index), self.classes, self._ids_of)

    def image_path(self, index: int) -> Path:
        """Return where the image lies."""
        return self._images / f"{self._ids[index]}.jpg"

    def describe(self, index: int) -> RecordInfo:
        """Return id and split of a record, without opening its image."""
        return RecordInfo(self._ids[index], split=self._split, pairs=0, ranking=0, gold=True)

    def image_file(self, index: int) -> ImageFile:
        """Return the image's file as it lies on disk."""
        return ImageFile(".jpg", read_file(self.image_path(index)))


class VocDataset:
    """Pascal VOC: 20 classes and the background; the border of the objects is 255.

    Args:
        root: the folder that torchvision's download was given.
        year: "2007" to "2012".
        image_set: torchvision's, "train", "val" or "trainval" ("test" for 2007).
    """

    classes = VOC_CLASSES

    def __init__(self, root: str | Path, year: str = "2012", image_set: str = "train"):
        self._set = _open(VOCSegmentation, root, year=str(year), image_set=image_set)
        self._split = image_set if image_set in ("train", "val", "test") else ""
        self._paths = [Path(path) for path in self._set.images]
        self._golds = [Path(path) for path in self._set.masks]

    def __len__(self) -> int:
        return len(self._set)

    def __getitem__(self, index: int) -> Record:
        return _record(self._paths[index], self._golds[index], self.describe(index), self.classes, None)

    def describe(self, index: int) -> RecordInfo:
        """Return id and split of a record, without opening its image."""
        return RecordInfo(self._paths[index].stem, split=self._split, pairs=0, ranking=0, gold=True)

    def image_file(self, index: int) -> ImageFile:
        """Return the image's file as it lies on disk."""
        return ImageFile(".jpg", read_file(self._paths[index]))


def _open(kind: Any, root: str | Path, **options: Any) -> Any:
    try:
        return kind(str(root), download=False, **options)
    # torchvision raises ValueError or IndexError for a damaged list.
    except (RuntimeError, OSError, ValueError, IndexError) as error:
        raise DataError(
            f"{root}: no {kind.__name__} there ({error}); download it once with "
            f"torchvision.datasets.{kind.__name__}({str(root)!r}, download=True)."
        ) from None


def _record(
    path: Path, gold_path: Path, info: RecordInfo, classes: tuple[str, ...], table: np.ndarray | None
) -> Record:
    image = decode_image(read_file(path), str(path))
    gold = decode_mask(read_file(gold_path), str(gold_path))
    mask: Mask = check_mask(gold if table is None else table[gold], image.shape[:2], classes, f"{info.id}: gold: ")
    empty = np.zeros((0, *image.shape[:2]), np.uint8)
    return Record(info.id, image, empty, (), gold=mask, split=info.split)
