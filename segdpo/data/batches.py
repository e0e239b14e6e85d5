"""Items and batches: what the data sets return, and what the collate functions join them to."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Self

import numpy as np
import torch
from jaxtyping import Bool, Float32, Int64, UInt8
from numpy.typing import NDArray
from torch import Tensor

from segdpo.checks import IGNORE
from segdpo.kernels import MaskIndex, PairIndex, mask_index, pair_index
from segdpo.masks import Mask, Masks


@dataclass(frozen=True, eq=False)
class Item:
    """What every item has: the id of the record, the number of the view, and the view of the image and of gold.

    `valid` is False where the pixel came from outside the image.
    """

    id: str
    view: int
    image: Float32[np.ndarray, "channels height width"]
    valid: Bool[np.ndarray, "height width"]
    gold: Mask | None


@dataclass(frozen=True, eq=False)
class PairItem(Item):
    """The masks that occur in pairs, each once; `pairs` (chosen, rejected) index `masks`, `numbers` are the record's.

    `dropped` counts the pairs that were left out because no pixel of theirs is valid in this view.
    """

    masks: Masks
    numbers: Int64[np.ndarray, "masks"]
    pairs: Int64[np.ndarray, "pairs two"]
    weight: Float32[np.ndarray, "pairs"]
    dropped: int


@dataclass(frozen=True, eq=False)
class RankingItem(Item):
    """K masks, best first; `numbers` are the record's."""

    masks: Masks
    numbers: Int64[np.ndarray, "masks"]


@dataclass(frozen=True, eq=False)
class SupervisedItem(Item):
    """A target: class ids uint8 [H, W], or shares of the classes float32 [classes, H, W]."""

    target: Mask | Float32[np.ndarray, "classes height width"]


@dataclass(eq=False)
class Batch:
    """What every batch has: images, the pixels that count, the numbers of the views, ids of the records, and gold.

    `empty`: no pixel of its masks counts, so that its loss is 0.

    Not frozen, as values are elsewhere: Lightning's bf16-true and FSDP write the images they converted into it.
    """

    image: Float32[Tensor, "images channels height width"]
    valid: Bool[Tensor, "images height width"]
    view: Int64[Tensor, "images"]
    ids: list[str]
    gold: UInt8[Tensor, "images height width"] | None
    empty: bool = field(default=False, kw_only=True)

    def to(self, device: torch.device | str, non_blocking: bool | None = None) -> Self:
        """Move the tensors; masks travel as uint8.

        Args:
            device: where they go.
            non_blocking: do not wait until they are there; None: on the way to a GPU, whose work keeps its order.
        """
        # Not left to the caller: Lightning asks for it with plain tensors only.
        sent = torch.device(device).type == "cuda" if non_blocking is None else non_blocking
        return self._map(lambda tensor: tensor.to(device, non_blocking=sent))

    def pin_memory(self) -> Self:
        """Page-lock the tensors, so that `to(device, non_blocking=True)` does not wait."""
        return self._map(Tensor.pin_memory)

    def _map(self, function: Callable[[Tensor], Tensor]) -> Self:
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        moved: dict[str, Any] = {name: function(value) for name, value in values.items() if isinstance(value, Tensor)}
        indices = {name: value for name, value in values.items() if isinstance(value, PairIndex | SharedMasks)}
        moved |= {name: value.map(function) for name, value in indices.items()}
        return replace(self, **moved)


@dataclass(eq=False)
class SharedMasks:
    """The masks of a batch, each once, for many pairs of few masks.

    Pair p prefers masks[pairs[p, 0]] to masks[pairs[p, 1]]; mask m belongs to image `mask_image[m]`. `index` says where
    each mask differs from one mask of its image.
    """

    masks: UInt8[Tensor, "masks height width"]
    pairs: Int64[Tensor, "pairs two"]
    mask_image: Int64[Tensor, "masks"]
    index: MaskIndex

    def map(self, function: Callable[[Tensor], Tensor]) -> "SharedMasks":
        """Return the same with each tensor put through a function."""
        tensors = {name: function(value) for name, value in vars(self).items() if isinstance(value, Tensor)}
        return replace(self, index=self.index.map(function), **tensors)


@dataclass(eq=False)
class PairBatch(Batch):
    """Images and all pairs between their masks; pair p belongs to image `image_index[p]`, so one forward serves all.

    `pair_masks` are the numbers of the chosen and the rejected mask in the record. `index` says where the masks of each
    pair differ, so that the loss need not look for it; where masks are in several pairs each, `shared` does. Both may
    be left out. `identical` counts pairs whose masks do not differ in this view (their margin is 0); `dropped` counts
    pairs that were left out because no pixel of theirs is valid in this view.
    """

    chosen: UInt8[Tensor, "pairs height width"]
    rejected: UInt8[Tensor, "pairs height width"]
    image_index: Int64[Tensor, "pairs"]
    weight: Float32[Tensor, "pairs"]
    pair_masks: Int64[Tensor, "pairs two"]
    index: PairIndex | None = None
    shared: SharedMasks | None = None
    identical: int = 0
    dropped: int = 0


@dataclass(eq=False)
class RankingBatch(Batch):
    """Images with one ranking each: `ranking[i]` holds K masks of image i, best first.

    `ranking_masks` are their numbers in the record; `dropped` counts images that were left out because they have
    no valid pixel.
    """

    ranking: UInt8[Tensor, "images masks height width"]
    ranking_masks: Int64[Tensor, "images masks"]
    dropped: int = 0


@dataclass(eq=False)
class SupervisedBatch(Batch):
    """Images with a target: class ids uint8 [B, H, W], or shares of the classes float32 [B, classes, H, W].

    `valid` is False where the target is ignored: 255, or with shares, where all masks are ignored.
    """

    target: UInt8[Tensor, "images height width"] | Float32[Tensor, "images classes height width"]


def collate_pairs(items: Sequence[PairItem]) -> PairBatch:
    """Join items to a PairBatch; an image that has no pair left is left out.

    If none has, the batch holds the first image with a pair of weight 0, and is `empty`.
    """
    kept = [item for item in items if len(item.pairs)]
    empty = not kept
    if empty:
        kept = [replace(items[0], pairs=np.array([[0, 1]]), weight=np.zeros(1, np.float32))]
    masks = torch.from_numpy(_pad([item.masks for item in kept], IGNORE, join=np.concatenate))
    counts = [len(item.masks) for item in kept]
    firsts = np.cumsum([0, *counts[:-1]])
    pairs = torch.from_numpy(np.concatenate([item.pairs + first for item, first in zip(kept, firsts, strict=True)]))
    numbers = torch.from_numpy(np.concatenate([item.numbers for item in kept]))
    common, mask_image = _common(kept), torch.from_numpy(np.repeat(np.arange(len(kept)), counts))
    chosen, rejected = (masks.index_select(0, side) for side in pairs.unbind(1))
    image_index = mask_image.index_select(0, pairs[:, 0])
    index = shared = None
    # Of the padded masks, since positions count all pixels.
    if len(pairs) > len(masks) - len(kept):
        shared = SharedMasks(masks, pairs, mask_image, mask_index(masks, pairs, mask_image, common["valid"]))
    else:
        index = pair_index(chosen, rejected, common["valid"], image_index)
    return PairBatch(
        **common,
        chosen=chosen,
        rejected=rejected,
        image_index=image_index,
        weight=torch.from_numpy(np.concatenate([item.weight for item in kept])),
        pair_masks=numbers[pairs],
        index=index,
        shared=shared,
        identical=sum(torch.equal(a, b) for a, b in zip(chosen, rejected, strict=True)),
        dropped=sum(item.dropped for item in items),
        empty=empty,
    )


def collate_rankings(items: Sequence[RankingItem]) -> RankingBatch:
    """Join items with K masks each to a RankingBatch, without images where no pixel is known in all K masks.

    If that leaves none, the batch holds the first image, and is `empty`.
    """
    known = [item for item in items if (item.masks != IGNORE).all(0).any()]
    kept = known or items[:1]
    return RankingBatch(
        **_common(kept),
        ranking=torch.from_numpy(_pad([item.masks for item in kept], IGNORE)),
        ranking_masks=torch.from_numpy(np.stack([item.numbers for item in kept])),
        dropped=len(items) - len(known),
        empty=not known,
    )


def collate_supervised(items: Sequence[SupervisedItem]) -> SupervisedBatch:
    """Join items with a target each to a SupervisedBatch."""
    targets = [item.target for item in items]
    fill = IGNORE if targets[0].dtype == np.uint8 else 0
    empty = not any(item.valid.any() for item in items)
    return SupervisedBatch(**_common(items), target=torch.from_numpy(_pad(targets, fill)), empty=empty)


def _common(items: Sequence[Item]) -> dict[str, Any]:
    golds = [item.gold for item in items]
    gold = None
    if any(mask is not None for mask in golds):
        unknown = [np.full(item.valid.shape, IGNORE, np.uint8) for item in items]
        gold = torch.from_numpy(_pad([a if a is not None else b for a, b in zip(golds, unknown, strict=True)], IGNORE))
    return {
        "image": torch.from_numpy(_pad([item.image for item in items], 0)),
        "valid": torch.from_numpy(_pad([item.valid for item in items], False)),
        "view": torch.tensor([item.view for item in items]),
        "ids": [item.id for item in items],
        "gold": gold,
    }


def _pad(
    arrays: Sequence[NDArray[Any]], fill: float, join: Callable[[Sequence[NDArray[Any]]], NDArray[Any]] = np.stack
) -> NDArray[Any]:
    """Join arrays [..., H, W], padded to the largest height and width."""
    height, width = (max(array.shape[axis] for array in arrays) for axis in (-2, -1))
    filled = [
        array
        if array.shape[-2:] == (height, width)
        else np.pad(
            array,
            [(0, 0)] * (array.ndim - 2) + [(0, height - array.shape[-2]), (0, width - array.shape[-1])],
            constant_values=fill,
        )
        for array in arrays
    ]
    return join(filled)
