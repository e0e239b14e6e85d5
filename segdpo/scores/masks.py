"""Masks to score: `Pairs`, `Rankings` and `MaskPairs`; and `Prepared`, the masks checked and brought to kernel form."""

from dataclasses import dataclass

import torch
from torch import Tensor

from segdpo.checks import check_labels, check_shapes, check_values
from segdpo.kernels import EvenMeasure, MaskIndex, Measure, PairIndex, index_of, not_ignored, score_dtype
from segdpo.scores.regions import REDUCTIONS, REGIONS, pixel_weights
from segdpo.scores.score import Score


@dataclass(frozen=True, eq=False)
class Pairs:
    """Pairs of masks, and what is known about them.

    Args:
        chosen: class ids [pairs, *spatial], 255 = ignore; a pixel ignored in either mask is ignored in both.
        rejected: like `chosen`.
        valid: bool, [images, *spatial] or [pairs, *spatial]; False = the pixel does not count.
        image_index: [pairs], the image of each pair; None: pair i belongs to image i.
        region_mask: bool, shaped like `valid`; the pixels of `Score(region="given")`.
        index: where the masks differ, from `pair_index` of the same masks and `valid`; None: computed if needed.
    """

    chosen: Tensor
    rejected: Tensor
    valid: Tensor | None = None
    image_index: Tensor | None = None
    region_mask: Tensor | None = None
    index: PairIndex | None = None

    def prepare(self, logits: Tensor, check: bool | None = None) -> "Prepared":
        """Check the masks against the logits and bring them to kernel form."""
        return Prepared(logits, {"chosen": self.chosen, "rejected": self.rejected}, self, index=self.index, check=check)


@dataclass(frozen=True, eq=False)
class Rankings:
    """Rankings of K masks.

    Args:
        masks: class ids [lists, K, *spatial], best first, 255 = ignore; a pixel ignored in one mask is ignored in all.
        valid: bool, [images, *spatial] or [lists, *spatial]; False = the pixel does not count.
        image_index: [lists], the image of each ranking; None: ranking i belongs to image i.
        region_mask: bool, shaped like `valid`; the pixels of `Score(region="given")`.
    """

    masks: Tensor
    valid: Tensor | None = None
    image_index: Tensor | None = None
    region_mask: Tensor | None = None

    def prepare(self, logits: Tensor, check: bool | None = None) -> "Prepared":
        """Check the masks against the logits and bring them to kernel form."""
        if self.masks.ndim != logits.ndim or self.masks.shape[1] < 2:
            raise ValueError(
                "Expected a ranking of shape [lists, K, *spatial] with K of at least 2 masks, best first, "
                f"but got {tuple(self.masks.shape)} for logits {tuple(logits.shape)}."
            )
        named = {f"ranking[:, {k}]": mask for k, mask in enumerate(self.masks.unbind(1))}
        return Prepared(logits, named, self, check=check)


@dataclass(frozen=True, eq=False)
class MaskPairs:
    """Pairs of masks of which each may occur in several pairs.

    Args:
        masks: class ids [masks, *spatial], 255 = ignore.
        pairs: int64 [pairs, 2], the numbers of the chosen and the rejected mask; both of one image.
        mask_image: [masks], the image of each mask.
        valid: bool [images, *spatial]; False = the pixel does not count.
        index: where the masks differ, from `mask_index` of the same masks; None: computed if needed.
    """

    masks: Tensor
    pairs: Tensor
    mask_image: Tensor
    valid: Tensor | None = None
    index: MaskIndex | None = None
    region_mask = None  # Score(region="given") is not supported here

    @property
    def image_index(self) -> Tensor:
        """The image of each mask, as `Pairs` has that of each pair."""
        return self.mask_image

    def check(self) -> None:
        """Raise an error for pairs that these masks cannot form; reads no values on a device other than the CPU."""
        masks, pairs, mask_image = self.masks, self.pairs, self.mask_image
        if pairs.ndim != 2 or pairs.shape[1] != 2 or pairs.dtype != torch.int64 or not len(pairs):
            raise ValueError(
                "Expected pairs as int64 [pairs, 2], the numbers of the chosen and the rejected mask, but got "
                f"{str(pairs.dtype).removeprefix('torch.')} of shape {tuple(pairs.shape)}."
            )
        if tuple(mask_image.shape) != (len(masks),):
            raise ValueError(
                f"Expected mask_image of shape ({len(masks)},), the image of each mask, but got "
                f"{tuple(mask_image.shape)}."
            )
        if pairs.device.type == "cpu" and not torch.compiler.is_compiling():
            low, high = int(pairs.min()), int(pairs.max())
            if low < 0 or high >= len(masks):
                raise ValueError(
                    f"Expected pairs of masks 0 to {len(masks) - 1} but got mask {low if low < 0 else high}."
                )
            if not torch.equal(mask_image[pairs[:, 0]], mask_image[pairs[:, 1]]):
                raise ValueError("Expected both masks of a pair to be of one image but mask_image names two.")
        if self.index is not None:
            self.index.check_fits(pairs=len(pairs), pixels=masks[0].numel(), device=masks.device)

    def split(self) -> Pairs:
        """Return the pairs with two masks each."""
        chosen, rejected = (self.masks.index_select(0, side) for side in self.pairs.unbind(1))
        return Pairs(chosen, rejected, self.valid, self.mask_image.long().index_select(0, self.pairs[:, 0]))

    def prepare_masks(self, logits: Tensor, check: bool | None = None) -> "Prepared":
        """Check the masks one by one; with an index, only as far as making the index has not checked them."""
        masks = Prepared(logits, {"masks": self.masks}, self, check=check, trusted=self.index is not None)
        if masks.checks and self.index is not None:
            check_labels({"masks": self.index.rows.plus}, logits.shape[1])
            check_labels({"masks": self.index.rows.minus}, logits.shape[1])
        return masks


class Prepared:
    """Masks that belong to some logits, checked, and as flat legal labels.

    Whole masks are read only when something that depends on them is used: with an index, margins over the image or the
    disagreement do not read them.

    Args:
        logits: [images, channels, *spatial].
        named: masks [pairs, *spatial] by the name that errors give them: chosen and rejected, or a ranking, best first.
        given: what they come from; its `valid`, `image_index` and `region_mask` are used.
        index: where the first and the last mask differ.
        check: read the values; None: only on a CPU and not under torch.compile.
        trusted: the values were checked, as far as possible without a network, when an index was made.
    """

    def __init__(
        self,
        logits: Tensor,
        named: dict[str, Tensor],
        given: Pairs | Rankings | MaskPairs,
        *,
        index: PairIndex | None = None,
        check: bool | None = None,
        trusted: bool = False,
    ) -> None:
        check_shapes(logits, named, given.image_index)
        self.image_index = None if given.image_index is None else given.image_index.long()
        # bool masks are class ids too; a view costs nothing.
        self._named = {
            name: mask.view(torch.uint8) if mask.dtype == torch.bool else mask for name, mask in named.items()
        }
        self._masks = list(self._named.values())
        self._images, self._channels, self.dtype = len(logits), logits.shape[1], score_dtype(logits)
        self._valid, self._region_mask, self._index = given.valid, given.region_mask, index
        # Computed once. Not by cached_property, whose lock torch.compile cannot trace on Python 3.11.
        self._counts: Tensor | None = None
        self._labels: dict[int, Tensor] = {}
        self.checks = (logits.device.type == "cpu" and not torch.compiler.is_compiling()) if check is None else check
        self._checked = bool(check) or not (trusted or index is not None)
        if index is not None:
            index.check_fits(pairs=len(self._masks[0]), pixels=self._masks[0][0].numel(), device=logits.device)
        if self.checks and self._checked:
            check_values(self.named_labels, self.counts, logits)
        elif self.checks and index is not None:
            check_labels({"chosen": index.plus, "rejected": index.minus}, logits.shape[1])

    @property
    def counts(self) -> Tensor:
        """The pixels that no mask of the pair ignores and that are valid in the image: bool [pairs, *spatial]."""
        if self._counts is None:
            self._counts = self._find_counts()
        return self._counts

    def _find_counts(self) -> Tensor:
        if self._index is not None and self._index.whole:
            return torch.ones((), dtype=torch.bool, device=self._masks[0].device).expand(self._masks[0].shape)
        counts, *more = (not_ignored(mask) for mask in self._masks)
        for one in more:
            counts = counts & one
        if self._valid is not None:
            counts = counts & self._for_each_pair("valid", self._valid, counts, self.image_index)
        return counts

    @property
    def labels(self) -> list[Tensor]:
        """Flat masks [pairs, pixels]; ignored pixels have class 0, so that kernels may index with every label."""
        return [self.label(number) for number in range(len(self._masks))]

    @property
    def named_labels(self) -> dict[str, Tensor]:
        """The labels, by the names that errors give them."""
        return dict(zip(self._named, self.labels, strict=True))

    def label(self, number: int) -> Tensor:
        """Return one of the labels."""
        if self._index is not None and self._index.whole:
            return self.flat(number)
        if number not in self._labels:
            # Multiplication takes a fifth of the time of masked_fill.
            self._labels[number] = (self._masks[number] * self.counts).flatten(1)
        return self._labels[number]

    def flat(self, number: int) -> Tensor:
        """Return one of the masks unchanged, [pairs, pixels], with 255 where it ignores."""
        return self._masks[number].flatten(1)

    def check_chosen(self) -> None:
        """Raise an error if the chosen masks have illegal classes, unless their values have been checked already."""
        if self.checks and not self._checked:
            check_labels({next(iter(self._named)): self.label(0)}, self._channels)
            self._checked = True

    @property
    def has_index(self) -> bool:
        """Whether an index was given or has been computed."""
        return self._index is not None

    @property
    def index(self) -> PairIndex:
        """Where the first and the last mask differ."""
        if self._index is None:
            first, *_, last = self.labels
            self._index = index_of(first, last, self.counts.flatten(1))
        return self._index

    def measure(self, score: Score, *, sparse: bool = False) -> Measure:
        """Return the pixels that count and their weights, which are those of the first mask.

        `sparse`: the index may be computed now if none was given.
        """
        if (sparse or self.has_index) and score.is_even and len(self._masks) == 2:
            weights = even_weights(score, self.index.valid, self.index.differing, self.dtype)
            return EvenMeasure(lambda: (self._inside(score), self.label(0)), weights, self.image_index, score.quantity)
        inside, best = self._inside(score), self.label(0)
        divisor = REDUCTIONS[score.reduction](best, inside, max(2, self._channels))
        return Measure(inside, pixel_weights(divisor, self.dtype), best, self.image_index, score.quantity)

    def _inside(self, score: Score) -> Tensor:
        return (self.counts & self._region(score)).flatten(1)

    def _region(self, score: Score) -> Tensor:
        masks, region = self._masks, score.region
        if region == "image":
            return self.counts
        if region == "disagreement":
            return torch.stack([mask != masks[-1] for mask in masks[:-1]]).any(0)
        if region == "given":
            if self._region_mask is None:
                raise ValueError('Expected a region_mask for region="given" but got none; pass region_mask=….')
            return self._for_each_pair("region", self._region_mask, self.counts, self.image_index)
        function = region if callable(region) else REGIONS[region]
        return self._for_each_pair("region", function(masks[0], masks[-1]), self.counts, image_index=None)

    def _for_each_pair(self, name: str, mask: Tensor, like: Tensor, image_index: Tensor | None) -> Tensor:
        """Return one mask for each pair, from one for each pair or one for each image."""
        images = self._images
        if mask.dtype != torch.bool or mask.shape[1:] != like.shape[1:] or len(mask) not in (images, len(like)):
            raise ValueError(
                f"Expected {name} to be a bool mask of shape {(images, *like.shape[1:])} (one an image) or "
                f"{tuple(like.shape)} (one a pair) but got {str(mask.dtype).removeprefix('torch.')} "
                f"of shape {tuple(mask.shape)}."
            )
        return mask if image_index is None or len(mask) != images else mask.index_select(0, image_index)


def even_weights(score: Score, valid: Tensor, differing: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the weight of each pixel of a pair, [pairs, 1], for a score that `is_even`.

    `valid` and `differing` [pairs] are the numbers of pixels that count, and of those where the masks differ.
    """
    pixels = valid if score.region == "image" else differing
    return pixel_weights((torch.ones_like(pixels) if score.reduction == "sum" else pixels)[:, None], dtype)
