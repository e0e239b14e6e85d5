"""Where the two masks of each pair differ: found once, on the CPU, by whoever makes the batch.

To find it is to pass over whole masks, and on a GPU to wait for the device, since nobody knows beforehand how many
pixels there are. With it, a margin costs what the masks differ by, whatever the size of the image.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Int64, Integer, Shaped
from torch import Tensor

from segdpo.regions import IGNORE


@dataclass(eq=False)
class PairIndex:
    """The judged pixels where the masks of each pair differ, and how many pixels are judged at all.

    Not frozen, as values are elsewhere: it is part of a batch, and Lightning writes the tensors it moved into it.

    Attributes:
        position: flat into [pairs, pixels], ascending.
        plus: the chosen mask's class there.
        minus: the rejected mask's class there.
        valid: how many pixels of each pair are judged.
        differing: at how many of them its masks differ.
        pixels: how many pixels a mask has, judged or not.
        whole: all of them are judged in every pair, as far as is known without waiting for a device.
    """

    position: Integer[Tensor, "entries"]
    plus: Integer[Tensor, "entries"]
    minus: Integer[Tensor, "entries"]
    valid: Integer[Tensor, "pairs"]
    differing: Integer[Tensor, "pairs"]
    pixels: int
    whole: bool = False

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "PairIndex":
        """Move the tensors."""
        return self.map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> "PairIndex":
        """Page-lock the tensors, so that `to(device, non_blocking=True)` does not wait."""
        return self.map(Tensor.pin_memory)

    def check_fits(self, *, pairs: int, pixels: int, device: torch.device) -> None:
        """Refuse to serve other pairs, masks of another size, or logits elsewhere; looks at no value."""
        if len(self.valid) != pairs or self.pixels != pixels:
            raise ValueError(
                f"Expected an index of these masks, {pairs} pairs of {pixels} pixels, but got one of "
                f"{len(self.valid)} pairs of {self.pixels} pixels; make it from the very masks that are scored with "
                "pair_index(chosen, rejected, …), or leave it out."
            )
        if self.position.device != device:
            raise ValueError(
                f"Expected the index on the device of the logits, {device}, but it is on {self.position.device}; "
                "move it with .to(logits.device)."
            )

    def pair(self) -> Integer[Tensor, "entries"]:
        """Return which pair each of the pixels belongs to."""
        return self.spread(torch.arange(len(self.valid), device=self.position.device))

    def spread(self, of_pair: Shaped[Tensor, "pairs"]) -> Shaped[Tensor, "entries"]:
        """Return each pixel's own of the pairs' values."""
        # With the size given, a GPU need not be waited for.
        return of_pair.repeat_interleave(self.differing, output_size=len(self.position))

    def map(self, function: Callable[[Tensor], Tensor]) -> "PairIndex":
        """Return the index with each tensor put through a function."""
        tensors = {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}
        return replace(self, **{name: function(value) for name, value in tensors.items()})  # type: ignore[arg-type]


def pair_index(
    chosen: Shaped[Tensor, "pairs *space"],
    rejected: Shaped[Tensor, "pairs *space"],
    valid: Bool[Tensor, "images *space"] | None = None,
    image_index: Integer[Tensor, "pairs"] | None = None,
) -> PairIndex:
    """Find where the masks of each pair differ, among the pixels that are ignored in neither and valid in the image.

    `valid` holds one mask an image; `image_index` says which image each pair belongs to, left out: one pair an image.
    Of masks of equal size: what fills up smaller images of a batch has to be there already, as 255.

    >>> index = pair_index(torch.tensor([[1, 1, 255]]).byte(), torch.tensor([[0, 1, 1]]).byte())
    >>> index.position.tolist(), index.plus.tolist(), index.minus.tolist(), index.valid.tolist()
    ([0], [1], [0], [2])
    """
    judged = known(chosen) & known(rejected)
    if valid is not None:
        judged &= valid if image_index is None else valid[image_index.long()]
    return index_of(chosen, rejected, judged)


def known(mask: Shaped[Tensor, "*shape"]) -> Bool[Tensor, "*shape"]:
    """Return where a mask is not ignored."""
    # 255 is uint8's −1; a comparison with a number takes six times as long as both of these.
    return mask.bitwise_not().bool() if mask.dtype == torch.uint8 else mask != IGNORE


def count_pixels(masks: Bool[Tensor, "masks *space"]) -> Int64[Tensor, "masks"]:
    """Return how many pixels of each mask are True."""
    if masks.device.type != "cpu":
        return masks.flatten(1).count_nonzero(1)
    # One by one: along a dimension a CPU counts several times as slowly.
    return torch.stack([mask.count_nonzero() for mask in masks])


def index_of(
    chosen: Shaped[Tensor, "pairs *space"],
    rejected: Shaped[Tensor, "pairs *space"],
    judged: Bool[Tensor, "pairs *space"],
) -> PairIndex:
    """Find where the masks of each pair differ, among the pixels that are judged."""
    differs = (judged & (chosen != rejected)).flatten(1)
    position = differs.flatten().nonzero()[:, 0]
    plus, minus = (mask.flatten().index_select(0, position) for mask in (chosen, rejected))
    as_ids = torch.uint8 if chosen.dtype == torch.bool else chosen.dtype
    valid, differing = (count_pixels(mask) for mask in (judged, differs))
    pixels = differs.shape[1]
    whole = judged.device.type == "cpu" and min(valid.tolist(), default=0) == pixels
    return PairIndex(position, plus.to(as_ids), minus.to(as_ids), valid, differing, pixels, whole)
