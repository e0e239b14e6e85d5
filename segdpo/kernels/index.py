"""Where masks differ, computed once by the collate function: `pair_index`, and `mask_index` for K masks of an image."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Int64, Integer, Shaped
from torch import Tensor

from segdpo.checks import IGNORE, check_each


@dataclass(eq=False)
class PairIndex:
    """The valid pixels where the masks of each pair differ, and the number of valid pixels.

    Not frozen, since it is part of a batch, and Lightning assigns the moved tensors to its attributes.

    Attributes:
        position: flat indices into [pairs, pixels], ascending.
        plus: the chosen mask's class at each position.
        minus: the rejected mask's class at each position.
        valid: the number of valid pixels of each pair.
        differing: the number of valid pixels of each pair where its masks differ.
        pixels: the number of pixels of a mask, valid or not.
        whole: True if every pixel of every pair is valid and this is known without waiting for a device.
        ignore: the mask value of pixels that do not count.
        images: the number of images in `valid`; None: it was made without.
    """

    position: Integer[Tensor, "entries"]
    plus: Integer[Tensor, "entries"]
    minus: Integer[Tensor, "entries"]
    valid: Integer[Tensor, "pairs"]
    differing: Integer[Tensor, "pairs"]
    pixels: int
    whole: bool = False
    ignore: int = IGNORE
    images: int | None = None

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "PairIndex":
        """Move the tensors."""
        return self.map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> "PairIndex":
        """Pin the tensors in memory, so that `to(device, non_blocking=True)` does not wait."""
        return self.map(Tensor.pin_memory)

    def check_fits(self, *, pairs: int, pixels: int, device: torch.device) -> None:
        """Raise an error for other pairs, masks of another size or another device; reads no values."""
        if len(self.valid) != pairs or self.pixels != pixels:
            raise ValueError(
                f"Expected an index of these masks, {pairs} pairs of {pixels} pixels, but got one of "
                f"{len(self.valid)} pairs of {self.pixels} pixels; make it from the masks that are scored with "
                "pair_index(chosen, rejected, …), or omit it."
            )
        if self.position.device != device:
            raise ValueError(
                f"Expected the index on the device of the logits, {device}, but it is on {self.position.device}; "
                "move it with .to(logits.device)."
            )

    def check_made(self, *, images: int, ignore: int) -> None:
        """Raise an error if the index was made for other images or with other ignored pixels."""
        if self.ignore != ignore:
            raise ValueError(
                f"Expected an index made with ignore={ignore} but got one made with ignore={self.ignore}; pass the "
                "same ignore= to both functions."
            )
        if self.images is not None and self.images != images:
            raise ValueError(
                f"Expected an index made with valid of {images} images but got one made with valid of {self.images}; "
                "a mask for each pair is passed to pair_index as pair_valid=."
            )

    def pair(self) -> Integer[Tensor, "entries"]:
        """Return the pair of each position."""
        return self.spread(torch.arange(len(self.valid), device=self.position.device))

    def spread(self, of_pair: Shaped[Tensor, "pairs"]) -> Shaped[Tensor, "entries"]:
        """Return for each position the value of its pair."""
        # With the output size given, this does not wait for a GPU.
        return of_pair.repeat_interleave(self.differing, output_size=len(self.position))

    def map(self, function: Callable[[Tensor], Tensor]) -> "PairIndex":
        """Return the index with a function applied to each tensor."""
        tensors = {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}
        return replace(self, **{name: function(value) for name, value in tensors.items()})  # type: ignore[arg-type]


def pair_index(
    chosen: Shaped[Tensor, "pairs *space"],
    rejected: Shaped[Tensor, "pairs *space"],
    valid: Bool[Tensor, "images *space"] | None = None,
    image_index: Integer[Tensor, "pairs"] | None = None,
    *,
    pair_valid: Bool[Tensor, "pairs *space"] | None = None,
    ignore: int = IGNORE,
) -> PairIndex:
    """Find where the masks of each pair differ, among the pixels that neither ignores and that are valid.

    Args:
        chosen: class ids [pairs, *spatial], 255 = ignore. Smaller images of a batch are padded with 255 beforehand.
        rejected: like `chosen`.
        valid: bool [images, *spatial]; False = the pixel does not count.
        image_index: [pairs], the image of each pair; None: pair i belongs to image i.
        pair_valid: bool [pairs, *spatial]; False = the pixel does not count in this pair.
        ignore: the value of pixels that do not count. Where a model has more than 255 classes, masks are wider than
            uint8, and this is a value that is no class, such as -1.

    >>> index = pair_index(torch.tensor([[1, 1, 255]]).byte(), torch.tensor([[0, 1, 1]]).byte())
    >>> index.position.tolist(), index.plus.tolist(), index.minus.tolist(), index.valid.tolist()
    ([0], [1], [0], [2])
    """
    counts = not_ignored(chosen, ignore) & not_ignored(rejected, ignore)
    if valid is not None:
        _check_valid(valid, chosen, image_index)
        counts &= valid if image_index is None else valid[image_index.long()]
    if pair_valid is not None:
        check_each("pair_valid", pair_valid, len(chosen), chosen, "pair")
        counts &= pair_valid
    index = index_of(chosen, rejected, counts, ignore)
    return index if valid is None else replace(index, images=len(valid))


def _check_valid(valid: Tensor, masks: Tensor, image_index: Tensor | None) -> None:
    """Check as far as possible without logits, which say how many images there are."""
    images = len(masks) if image_index is None else max(len(valid), int(image_index.max()) + 1)
    check_each("valid", valid, images, masks, "image")


def not_ignored(mask: Shaped[Tensor, "*shape"], ignore: int = IGNORE) -> Bool[Tensor, "*shape"]:
    """Return which pixels of a mask are not ignored."""
    if mask.dtype == torch.uint8 and ignore == IGNORE:
        # Inverted, 255 of uint8 is 0. A comparison with 255 takes six times as long.
        return mask.bitwise_not().bool()
    # Compared as a number of the mask's type, a value outside of its range would be another one: -1 is 255 in uint8.
    limits = torch.iinfo(torch.uint8 if mask.dtype == torch.bool else mask.dtype)
    return mask != ignore if limits.min <= ignore <= limits.max else torch.ones_like(mask, dtype=torch.bool)


def count_pixels(masks: Bool[Tensor, "masks *space"]) -> Int64[Tensor, "masks"]:
    """Return the number of True pixels of each mask."""
    if masks.device.type != "cpu":
        return masks.flatten(1).count_nonzero(1)
    # One by one, since counting along a dimension is several times slower on a CPU.
    return torch.stack([mask.count_nonzero() for mask in masks])


def index_of(
    chosen: Shaped[Tensor, "pairs *space"],
    rejected: Shaped[Tensor, "pairs *space"],
    counts: Bool[Tensor, "pairs *space"],
    ignore: int = IGNORE,
) -> PairIndex:
    """Find where the masks of each pair differ, among the pixels that count; `ignore` is noted in the index."""
    differs = (counts & (chosen != rejected)).flatten(1)
    position = differs.flatten().nonzero()[:, 0]
    plus, minus = (mask.flatten().index_select(0, position) for mask in (chosen, rejected))
    as_ids = torch.uint8 if chosen.dtype == torch.bool else chosen.dtype
    valid, differing = (count_pixels(mask) for mask in (counts, differs))
    pixels = differs.shape[1]
    whole = counts.device.type == "cpu" and min(valid.tolist(), default=0) == pixels
    return PairIndex(position, plus.to(as_ids), minus.to(as_ids), valid, differing, pixels, whole, ignore)


Masks = Integer[Tensor, "masks *space"]
Pairs = Integer[Tensor, "pairs two"]


@dataclass(eq=False)
class MaskIndex:
    """Where masks differ, as rows of pixels; a pair's margin is the sum over one row minus that over another.

    A row compares a mask with the base mask of its image. Where the masks of an image ignore different pixels, each
    pair has a row of its own instead. Not frozen, for the reason given at `PairIndex`.

    Attributes:
        rows: the index of the rows, as if each were a pair.
        row_image: the image of each row.
        ahead: for each pair, the row that is added; the number after the last row means none.
        behind: for each pair, the row that is subtracted.
        valid: the number of valid pixels of each pair.
        differing: the number of valid pixels of each pair where its masks differ.
        shared: True if the masks of every image are valid at the same pixels.
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
        """Pin the tensors in memory, so that `to(device, non_blocking=True)` does not wait."""
        return self.map(Tensor.pin_memory)

    def map(self, function: Callable[[Tensor], Tensor]) -> "MaskIndex":
        """Return the index with a function applied to each tensor."""
        tensors = {name: function(value) for name, value in vars(self).items() if isinstance(value, Tensor)}
        return replace(self, rows=self.rows.map(function), **tensors)  # type: ignore[arg-type]

    def check_fits(self, *, pairs: int, pixels: int, device: torch.device) -> None:
        """Raise an error for other pairs, masks of another size or another device; reads no values."""
        if len(self.ahead) != pairs:
            raise ValueError(
                f"Expected an index of these {pairs} pairs but got one of {len(self.ahead)}; make it from the "
                "masks that are scored with mask_index(masks, pairs, …), or omit it."
            )
        self.rows.check_fits(pairs=len(self.row_image), pixels=pixels, device=device)

    def margins(self, sums: Shaped[Tensor, "rows"]) -> Shaped[Tensor, "pairs"]:
        """Return the margin of each pair from the sums of the rows."""
        padded = torch.cat([sums, sums.new_zeros(1)])
        return padded.index_select(0, self.ahead) - padded.index_select(0, self.behind)


def mask_index(
    masks: Masks,
    pairs: Pairs,
    mask_image: Integer[Tensor, "masks"],
    valid: Bool[Tensor, "images *space"] | None = None,
    *,
    ignore: int = IGNORE,
) -> MaskIndex:
    """Find where the masks of each image differ from a base mask, the one that differs least from all others.

    Args:
        masks: class ids [masks, *spatial], 255 = ignore.
        pairs: int64 [pairs, 2], the numbers of the chosen and the rejected mask; both of one image.
        mask_image: [masks], the image of each mask.
        valid: bool [images, *spatial]; False = the pixel does not count.
        ignore: as for `pair_index`.

    >>> masks = torch.tensor([[0, 1, 1], [0, 0, 1], [0, 0, 0]]).byte()
    >>> index = mask_index(masks, torch.tensor([[0, 1], [0, 2], [1, 2]]), torch.zeros(3).long())
    >>> index.rows.position.tolist(), index.differing.tolist()  # the second mask is one pixel from either other
    ([1, 5], [1, 2, 1])
    """
    couples, images = pairs.tolist(), mask_image.tolist()
    if valid is not None:
        _check_valid(valid, masks, mask_image)
    plan = _Plan(ignore)
    for image in sorted({images[first] for first, _ in couples}):
        own = [number for number, (first, _) in enumerate(couples) if images[first] == image]
        plan.add_image(masks, image, {number: tuple(couples[number]) for number in own}, valid)
    firsts, lasts = (torch.tensor(side, device=masks.device) for side in zip(*plan.rows, strict=True))
    row_image = mask_image.long().index_select(0, firsts)
    rows = pair_index(masks[firsts], masks[lasts], valid, row_image, ignore=ignore)
    ahead, behind = (
        torch.tensor([len(firsts) if side[n] is None else side[n] for n in range(len(couples))], device=masks.device)
        for side in (plan.ahead, plan.behind)
    )
    counted = torch.where(ahead < len(firsts), ahead, behind)
    differing = rows.differing.index_select(0, counted)
    for number, count in plan.counted.items():
        differing[number] = count
    return MaskIndex(rows, row_image, ahead, behind, rows.valid.index_select(0, counted), differing, plan.shared)


class _Plan:
    """The two masks that each row compares, and the rows of each pair."""

    def __init__(self, ignore: int) -> None:
        self.ignore = ignore
        self.rows: list[tuple[int, int]] = []
        self.ahead: dict[int, int | None] = {}
        self.behind: dict[int, int | None] = {}
        self.counted: dict[int, int] = {}
        self.shared = True

    def add_image(
        self, masks: Masks, image: int, couples: dict[int, tuple[int, ...]], valid: Bool[Tensor, "images *space"] | None
    ) -> None:
        used = sorted({mask for couple in couples.values() for mask in couple})
        counts = None if valid is None else valid[image]
        shared = _ignore_alike([masks[mask] for mask in used], counts, self.ignore)
        self.shared &= shared
        if not shared or len(couples) < len(used):
            for number, (first, last) in couples.items():
                self.ahead[number], self.behind[number] = len(self.rows), None
                self.rows.append((first, last))
            return
        apart = {mask: dict.fromkeys(used, 0) for mask in used}
        for at, mask in enumerate(used):
            for other in used[:at]:
                apart[mask][other] = apart[other][mask] = _count(masks[mask] != masks[other], counts)
        base = min(used, key=lambda mask: sum(apart[mask].values()))
        row_of: dict[int, int | None] = {base: None}
        for mask in used:
            if mask != base:
                row_of[mask] = len(self.rows)
                self.rows.append((mask, base))
        for number, (first, last) in couples.items():
            self.ahead[number], self.behind[number] = row_of[first], row_of[last]
            self.counted[number] = apart[first][last]


def _ignore_alike(masks: list[Tensor], valid: Tensor | None, ignore: int) -> bool:
    first, *others = (not_ignored(mask, ignore) for mask in masks)
    return all(_count(first != other, valid) == 0 for other in others)


def _count(pixels: Bool[Tensor, "*space"], valid: Bool[Tensor, "*space"] | None) -> int:
    return int((pixels if valid is None else pixels & valid).count_nonzero())
