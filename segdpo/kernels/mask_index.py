"""Many pairs between few masks of an image: each mask's difference to one of them says all that pairs can see.

With s_m − s_base for every mask m, the margin of any pair is a difference of two such numbers. So K masks cost K − 1
differences, not K(K − 1)/2.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Integer, Shaped
from torch import Tensor

from segdpo.kernels.pair_index import PairIndex, known, pair_index

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
