"""Masks to score: `Pairs`, `Rankings` and `MaskPairs`; and `Prepared`, the masks checked and brought to kernel form."""

import warnings
from dataclasses import dataclass

import torch
from torch import Tensor

from segdpo.checks import IGNORE, check_each, check_labels, check_logits, check_shapes, ignored_value, scored_pairs
from segdpo.kernels import (
    EvenMeasure,
    LowResolution,
    MaskIndex,
    Measure,
    PairIndex,
    index_of,
    not_ignored,
    score_dtype,
)
from segdpo.scores.regions import REDUCTIONS, REGIONS, Boundary, pixel_weights
from segdpo.scores.score import Score

OTHER_NAME = {"valid": "pair_valid", "region_mask": "pair_region"}
"""The argument with a mask for each image, and the one with a mask for each pair."""


@dataclass(frozen=True, eq=False)
class Pairs:
    """Pairs of masks, and what is known about them.

    Args:
        chosen: class ids [pairs, *spatial], 255 = ignore; a pixel ignored in either mask is ignored in both.
        rejected: like `chosen`.
        valid: bool [images, *spatial]; False = the pixel does not count, in any pair of the image.
        image_index: [pairs], the image of each pair; None: pair i belongs to image i.
        region_mask: bool [images, *spatial]; the pixels of `Score(region="given")`.
        index: where the masks differ, from `pair_index` of the same arguments; None: computed if needed.
        pair_valid: bool [pairs, *spatial]; False = the pixel does not count in this pair.
        pair_region: bool [pairs, *spatial]; as `region_mask`, but one for each pair.
        ignore: the value of pixels that do not count; None: 255, and an error for models that have a class 255.
    """

    chosen: Tensor
    rejected: Tensor
    valid: Tensor | None = None
    image_index: Tensor | None = None
    region_mask: Tensor | None = None
    index: PairIndex | None = None
    pair_valid: Tensor | None = None
    pair_region: Tensor | None = None
    ignore: int | None = None

    def prepare(self, logits: Tensor | LowResolution, check: bool | None = None) -> "Prepared":
        """Check the masks against the logits and bring them to kernel form."""
        return Prepared(logits, {"chosen": self.chosen, "rejected": self.rejected}, self, index=self.index, check=check)


@dataclass(frozen=True, eq=False)
class Rankings:
    """Rankings of K masks.

    Args:
        masks: class ids [lists, K, *spatial], best first, 255 = ignore; a pixel ignored in one mask is ignored in all.
        valid: bool [images, *spatial]; False = the pixel does not count, in any ranking of the image.
        image_index: [lists], the image of each ranking; None: ranking i belongs to image i.
        region_mask: bool [images, *spatial]; the pixels of `Score(region="given")`.
        pair_valid: bool [lists, *spatial]; False = the pixel does not count in this ranking.
        pair_region: bool [lists, *spatial]; as `region_mask`, but one for each ranking.
        ignore: as for `Pairs`.
    """

    masks: Tensor
    valid: Tensor | None = None
    image_index: Tensor | None = None
    region_mask: Tensor | None = None
    pair_valid: Tensor | None = None
    pair_region: Tensor | None = None
    ignore: int | None = None

    def prepare(self, logits: Tensor | LowResolution, check: bool | None = None) -> "Prepared":
        """Check the masks against the logits and bring them to kernel form."""
        if self.masks.ndim != len(logits.shape) or self.masks.shape[1] < 2:
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
        ignore: as for `Pairs`.
    """

    masks: Tensor
    pairs: Tensor
    mask_image: Tensor
    valid: Tensor | None = None
    index: MaskIndex | None = None
    ignore: int | None = None
    # Not supported here: a mask of its own for each pair, and Score(region="given").
    pair_valid = region_mask = pair_region = None

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
        image_index = self.mask_image.long().index_select(0, self.pairs[:, 0])
        return Pairs(chosen, rejected, self.valid, image_index, ignore=self.ignore)

    def prepare_masks(self, logits: Tensor, check: bool | None = None) -> "Prepared":
        """Check the masks one by one; with an index, only as far as making the index has not checked them."""
        index = None if self.index is None else self.index.rows
        return Prepared(logits, {"masks": self.masks}, self, made=index, check=check)


class Prepared:
    """Masks that belong to some logits, checked, and as flat legal labels.

    Whole masks are read only when something that depends on them is used: with an index, margins over the image or the
    disagreement do not read them.

    Args:
        logits: [images, channels, *spatial].
        named: masks [pairs, *spatial] by the name that errors give them: chosen and rejected, or a ranking, best first.
        given: what they come from.
        index: where the first and the last mask differ.
        check: read the values; None: only on a CPU and not under torch.compile.
        made: an index of other pairs of these masks; making it has checked the values, as far as possible without a
            network.

    Attributes:
        image_index: the image of each pair; None: pair i belongs to image i.
        dtype: of the scores.
        checks: whether values are read.
        scored: [pairs], which pairs have a pixel that counts; None: all have. Not for MaskPairs.
    """

    def __init__(
        self,
        logits: Tensor | LowResolution,
        named: dict[str, Tensor],
        given: Pairs | Rankings | MaskPairs,
        *,
        index: PairIndex | None = None,
        check: bool | None = None,
        made: PairIndex | None = None,
    ) -> None:
        low = logits.logits if isinstance(logits, LowResolution) else None
        # Has the shape of the upsampled logits and the memory of one number.
        logits = logits if isinstance(logits, Tensor) else logits.logits.new_zeros(()).expand(logits.shape)
        check_shapes(logits, named, given.image_index)
        self.image_index = None if given.image_index is None else given.image_index.long()
        self._given, self._ignore = given, ignored_value(given.ignore, logits.shape[1])
        self._check_given(len(logits), next(iter(named.values())))
        # bool masks are class ids too; a view costs nothing.
        self._named = {
            name: mask.view(torch.uint8) if mask.dtype == torch.bool else mask for name, mask in named.items()
        }
        self._masks = list(self._named.values())
        self._channels, self.dtype, self._index = logits.shape[1], score_dtype(logits), index
        # Computed once. Not by cached_property, whose lock torch.compile cannot trace on Python 3.11.
        self._counts: Tensor | None = None
        self._labels: dict[int, Tensor] = {}
        self.checks = (logits.device.type == "cpu" and not torch.compiler.is_compiling()) if check is None else check
        known = made if index is None else index
        self._checked = bool(check) or known is None
        if known is not None:
            known.check_made(images=len(logits), ignore=self._ignore)
        if index is not None:
            index.check_fits(pairs=len(self._masks[0]), pixels=self._masks[0][0].numel(), device=logits.device)
        if self.checks:
            self._check_values(known)
        if not isinstance(given, MaskPairs):
            self.scored = scored_pairs(self.counts.flatten(1).any(1) if index is None else index.valid, self.checks)
        if self.checks and (low is not None or self._checked):
            check_logits(logits if low is None else low)

    def _check_given(self, images: int, masks: Tensor) -> None:
        """Raise an error for masks of images or of pairs that have another shape; reads no values."""
        given, pairs = self._given, len(masks)
        both = not isinstance(given, MaskPairs)
        for name, other in OTHER_NAME.items():
            of_image, of_pair = getattr(given, name), getattr(given, other)
            if of_image is not None:
                check_each(name, of_image, images, masks, "image", (other, pairs) if both else None)
            if of_pair is not None:
                check_each(other, of_pair, pairs, masks, "pair", (name, images))

    def _check_values(self, index: PairIndex | None) -> None:
        if index is None or self._checked:
            highest = check_labels(self.named_labels, self._channels)
        else:
            highest = check_labels({"chosen": index.plus, "rejected": index.minus}, self._channels)
        if highest == 0 and self._channels <= 2 and self._ignore == IGNORE:
            self._warn_if_255_is_the_object()

    def _warn_if_255_is_the_object(self) -> None:
        """Warn if masks hold 0 and 255 alone, and not at the same pixels."""
        masks = self._masks
        if isinstance(self._given, MaskPairs):
            masks = list(masks[0][self._given.pairs].unbind(1))
        labels = [mask * not_ignored(mask) for mask in masks]
        if any(bool(label.any()) for label in labels) or all(torch.equal(mask, masks[0]) for mask in masks):
            return
        # The same words each time, so that Python shows them once.
        warnings.warn(
            "Expected class 1 in a mask but got only 0 and 255, and 255 means ignore: no pixel that counts differs, so "
            "nothing is learned. If 255 is the object, pass mask == 255; if it is not, drop such pairs.",
            stacklevel=2,
        )

    @property
    def counts(self) -> Tensor:
        """The pixels that no mask of the pair ignores and that are valid in the image: bool [pairs, *spatial]."""
        if self._counts is None:
            self._counts = self._find_counts()
        return self._counts

    def _find_counts(self) -> Tensor:
        if self._index is not None and self._index.whole:
            return torch.ones((), dtype=torch.bool, device=self._masks[0].device).expand(self._masks[0].shape)
        counts, *more = (not_ignored(mask, self._ignore) for mask in self._masks)
        for one in (*more, self._of_each_pair(self._given.valid), self._given.pair_valid):
            counts = counts if one is None else counts & one
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
            self._index = index_of(first, last, self.counts.flatten(1), self._ignore)
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
            own, of_pair = self._of_each_pair(self._given.region_mask), self._given.pair_region
            if own is None or of_pair is None:
                own = of_pair if own is None else own
                if own is None:
                    raise ValueError(
                        'Expected a region_mask for region="given" but got none; pass region_mask=… (one for each '
                        "image) or pair_region=… (one for each pair)."
                    )
                return own
            return own & of_pair
        function = region if callable(region) else REGIONS[region]
        options = {"ignore": self._ignore} if isinstance(function, Boundary) else {}
        inside = function(masks[0], masks[-1], **options)
        check_each("the region function's result", inside, len(masks[0]), masks[0], "pair")
        return inside

    def _of_each_pair(self, of_image: Tensor | None) -> Tensor | None:
        """Return a mask for each pair, from one for each image."""
        if of_image is None or self.image_index is None:
            return of_image
        return of_image.index_select(0, self.image_index)


def even_weights(score: Score, valid: Tensor, differing: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the weight of each pixel of a pair, [pairs, 1], for a score that `is_even`.

    `valid` and `differing` [pairs] are the numbers of pixels that count, and of those where the masks differ.
    """
    pixels = valid if score.region == "image" else differing
    return pixel_weights((torch.ones_like(pixels) if score.reduction == "sum" else pixels)[:, None], dtype)
