"""Where masks differ, found once by the collate: `pair_index` for pairs, `mask_index` for K masks of an image."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Int64, Integer, Shaped
from torch import Tensor

from segdpo.checks import IGNORE


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


Masks = Integer[Tensor, "masks *space"]
Pairs = Integer[Tensor, "pairs two"]


@dataclass(eq=False)
class MaskIndex:
    """Where masks differ, as rows of pixels; a pair's margin is the sum of one row less that of another.

    Where the masks of an image are not all ignored at the same pixels, each of its pairs is judged on pixels of its
    own, and has a row of its own. Not frozen, as PairIndex is not.

    Attributes:
        rows: the index of the rows, as if each were a pair.
        row_image: which image each row belongs to.
        ahead: of each pair, the row that is added; the number after the last row stands for none.
        behind: of each pair, the row that is taken away.
        valid: how many pixels of each pair are judged.
        differing: at how many of them its masks differ.
        shared: whether the masks of every image are judged at the same pixels.
    """

    rows: PairIndex
    row_image: Integer[Tensor, "rows"]
    ahead: Integer[Tensor, "pairs"]
    behind: Integer[Tensor, "pairs"]
    valid: Integer[Tensor, "pairs"]
    differing: Integer[Tensor, "pairs"]
    shared: bool

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "MaskIndex":
        """Move the tensors."""
        return self.map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> "MaskIndex":
        """Page-lock the tensors, so that `to(device, non_blocking=True)` does not wait."""
        return self.map(Tensor.pin_memory)

    def map(self, function: Callable[[Tensor], Tensor]) -> "MaskIndex":
        """Return the index with each tensor put through a function."""
        tensors = {name: function(value) for name, value in vars(self).items() if isinstance(value, Tensor)}
        return replace(self, rows=self.rows.map(function), **tensors)  # type: ignore[arg-type]

    def check_fits(self, *, pairs: int, pixels: int, device: torch.device) -> None:
        """Refuse to serve other pairs, masks of another size, or logits elsewhere; looks at no value."""
        if len(self.ahead) != pairs:
            raise ValueError(
                f"Expected an index of these {pairs} pairs but got one of {len(self.ahead)}; make it from the very "
                "masks that are scored with mask_index(masks, pairs, …), or leave it out."
            )
        self.rows.check_fits(pairs=len(self.row_image), pixels=pixels, device=device)

    def margins(self, sums: Shaped[Tensor, "rows"]) -> Shaped[Tensor, "pairs"]:
        """Return each pair's number from the rows'."""
        padded = torch.cat([sums, sums.new_zeros(1)])
        return padded.index_select(0, self.ahead) - padded.index_select(0, self.behind)


def mask_index(
    masks: Masks,
    pairs: Pairs,
    mask_image: Integer[Tensor, "masks"],
    valid: Bool[Tensor, "images *space"] | None = None,
) -> MaskIndex:
    """Find where the masks of each image differ from one of them, the one that the fewest pixels set apart.

    `pairs` number the masks, chosen first; `mask_image` says which image each mask belongs to.

    >>> masks = torch.tensor([[0, 1, 1], [0, 0, 1], [0, 0, 0]]).byte()
    >>> index = mask_index(masks, torch.tensor([[0, 1], [0, 2], [1, 2]]), torch.zeros(3).long())
    >>> index.rows.position.tolist(), index.differing.tolist()  # the second mask is one pixel from either other
    ([1, 5], [1, 2, 1])
    """
    couples, images = pairs.tolist(), mask_image.tolist()
    plan = _Plan()
    for image in sorted({images[first] for first, _ in couples}):
        own = [number for number, (first, _) in enumerate(couples) if images[first] == image]
        plan.add_image(masks, image, {number: tuple(couples[number]) for number in own}, valid)
    firsts, lasts = (torch.tensor(side, device=masks.device) for side in zip(*plan.rows, strict=True))
    row_image = mask_image.long().index_select(0, firsts)
    rows = pair_index(masks[firsts], masks[lasts], valid, row_image)
    ahead, behind = (
        torch.tensor([len(firsts) if side[n] is None else side[n] for n in range(len(couples))], device=masks.device)
        for side in (plan.ahead, plan.behind)
    )
    counted = torch.where(ahead < len(firsts), ahead, behind)
    differing = rows.differing.index_select(0, counted)
    for number, count in plan.counted.items():
        differing[number] = count
    return MaskIndex(rows, row_image, ahead, behind, rows.valid.index_select(0, counted), differing, plan.shared)


def _judged_alike(masks: list[Tensor], judged: Tensor | None) -> bool:
    first, *others = (known(mask) for mask in masks)
    return all(_count(first != other, judged) == 0 for other in others)


def _count(pixels: Bool[Tensor, "*space"], judged: Bool[Tensor, "*space"] | None) -> int:
    return int((pixels if judged is None else pixels & judged).count_nonzero())


class _Plan:
    """Which two masks each row compares, and which rows each pair is the difference of."""

    def __init__(self) -> None:
        self.rows: list[tuple[int, int]] = []
        self.ahead: dict[int, int | None] = {}
        self.behind: dict[int, int | None] = {}
        self.counted: dict[int, int] = {}
        self.shared = True

    def add_image(
        self, masks: Masks, image: int, couples: dict[int, tuple[int, ...]], valid: Bool[Tensor, "images *space"] | None
    ) -> None:
        used = sorted({mask for couple in couples.values() for mask in couple})
        judged = None if valid is None else valid[image]
        shared = _judged_alike([masks[mask] for mask in used], judged)
        self.shared &= shared
        if not shared or len(couples) < len(used):
            for number, (first, last) in couples.items():
                self.ahead[number], self.behind[number] = len(self.rows), None
                self.rows.append((first, last))
            return
        apart = {mask: dict.fromkeys(used, 0) for mask in used}
        for at, mask in enumerate(used):
            for other in used[:at]:
                apart[mask][other] = apart[other][mask] = _count(masks[mask] != masks[other], judged)
        base = min(used, key=lambda mask: sum(apart[mask].values()))
        row_of: dict[int, int | None] = {base: None}
        for mask in used:
            if mask != base:
                row_of[mask] = len(self.rows)
                self.rows.append((mask, base))
        for number, (first, last) in couples.items():
            self.ahead[number], self.behind[number] = row_of[first], row_of[last]
            self.counted[number] = apart[first][last]
