"""From a user's tensors to what kernels eat: flat legal labels, and Measures of which pixels count how much."""

import torch
from torch import Tensor

from segdpo.checks import check_choice, check_labels, check_shapes, check_values
from segdpo.kernels import EvenMeasure, Measure, PairIndex, index_of, known, score_dtype
from segdpo.scores.regions import REDUCTIONS, REGIONS, RegionFunction, pixel_weights

QUANTITIES = ("log_likelihood", "log_odds")
RegionChoice = str | RegionFunction | Tensor


class Masks:
    """The masks of pairs (chosen, rejected), or of rankings (best first), that belong to some logits.

    `trusted`: whoever made their index has looked at their values, as far as is known without a network.

    Whole masks are passed over only when what follows from them is asked for: with an index, margins over the image or
    the disagreement never do.
    """

    def __init__(
        self,
        logits: Tensor,
        masks: dict[str, Tensor],
        *,
        valid: Tensor | None,
        image_index: Tensor | None,
        index: PairIndex | None = None,
        check: bool | None = None,
        trusted: bool = False,
    ) -> None:
        check_shapes(logits, masks, image_index)
        self.image_index = None if image_index is None else image_index.long()
        # bool masks are class ids too; a view costs nothing.
        self.given = {
            name: mask.view(torch.uint8) if mask.dtype == torch.bool else mask for name, mask in masks.items()
        }
        self.images, self.classes, self.dtype = len(logits), max(2, logits.shape[1]), score_dtype(logits)
        self._valid, self._index = valid, index
        # What is found is kept; not by cached_property, whose lock no compiler of Python 3.11 gets through.
        self._judged: Tensor | None = None
        self._labels: dict[int, Tensor] = {}
        self.looks = (logits.device.type == "cpu" and not torch.compiler.is_compiling()) if check is None else check
        trusted = trusted or index is not None
        self._looked, self._channels = bool(check) or not trusted, logits.shape[1]
        if index is not None:
            index.check_fits(pairs=len(self._all[0]), pixels=self._all[0][0].numel(), device=logits.device)
        if self.looks and self._looked:
            check_values(dict(zip(masks, self.labels, strict=True)), self.judged, logits)
        elif self.looks and index is not None:
            check_labels({"chosen": index.plus, "rejected": index.minus}, logits.shape[1])

    @property
    def _all(self) -> list[Tensor]:
        return list(self.given.values())

    @property
    def judged(self) -> Tensor:
        """The pixels that no mask of the pair ignores and the image has valid: [pairs, *space]."""
        if self._judged is None:
            self._judged = self._find_judged()
        return self._judged

    def _find_judged(self) -> Tensor:
        if self._index is not None and self._index.whole:
            return torch.ones((), dtype=torch.bool, device=self._all[0].device).expand(self._all[0].shape)
        judged, *more = (known(mask) for mask in self.given.values())
        for one in more:
            judged = judged & one
        if self._valid is not None:
            judged = judged & self._one_a_pair("valid", self._valid, judged, self.image_index)
        return judged

    @property
    def labels(self) -> list[Tensor]:
        """Flat masks [pairs, pixels]; ignored pixels have class 0, so that every kernel may index with every label."""
        return [self.label(number) for number in range(len(self.given))]

    def label(self, number: int) -> Tensor:
        """Return one of the labels."""
        if self._index is not None and self._index.whole:
            return self.flat(number)
        if number not in self._labels:
            # Multiplied, which takes a fifth of the time of masked_fill.
            self._labels[number] = (self._all[number] * self.judged).flatten(1)
        return self._labels[number]

    def flat(self, number: int) -> Tensor:
        """Return one of the masks as it came, [pairs, pixels], with 255 where it ignores."""
        return self._all[number].flatten(1)

    def check_chosen(self) -> None:
        """Refuse classes of the chosen masks that the model does not predict, if nobody has looked at them yet."""
        if self.looks and not self._looked:
            name = next(iter(self.given))
            check_labels({name: self.label(0)}, self._channels)
            self._looked = True

    @property
    def has_index(self) -> bool:
        """Whether an index was given or has been found."""
        return self._index is not None

    @property
    def index(self) -> PairIndex:
        """Where the first and the last mask differ."""
        if self._index is None:
            first, *_, last = self.labels
            self._index = index_of(first, last, self.judged.flatten(1))
        return self._index

    def measure(self, quantity: str, region: RegionChoice, reduction: str, *, sparse: bool = False) -> Measure:
        """Return which of the pixels count how much, the weights of a pair being those of its first mask.

        `sparse`: the index may be made now, if none was given.
        """
        check_choice("quantity", quantity, QUANTITIES)
        check_choice("reduction", reduction, REDUCTIONS)
        if (sparse or self.has_index) and is_even(region, reduction) and len(self.given) == 2:
            return self._even(quantity, str(region), reduction)
        inside = self._inside(region)
        best = self.label(0)
        divisor = REDUCTIONS[reduction](best, inside, self.classes)
        return Measure(inside, pixel_weights(divisor, self.dtype), best, self.image_index, quantity)

    def _even(self, quantity: str, region: str, reduction: str) -> Measure:
        weights = even_weights(region, reduction, self.index.valid, self.index.differing, self.dtype)
        return EvenMeasure(lambda: (self._inside(region), self.label(0)), weights, self.image_index, quantity)

    def _inside(self, region: RegionChoice) -> Tensor:
        return (self.judged & self._region_mask(region)).flatten(1)

    def _region_mask(self, region: RegionChoice) -> Tensor:
        masks = self._all
        if isinstance(region, Tensor):
            return self._one_a_pair("region", region, self.judged, self.image_index)
        if region == "image":
            return self.judged
        if region == "disagreement":
            return torch.stack([mask != masks[-1] for mask in masks[:-1]]).any(0)
        if not callable(region):
            check_choice("region", region, REGIONS)
            region = REGIONS[region]
        return self._one_a_pair("region", region(masks[0], masks[-1]), self.judged, image_index=None)

    def _one_a_pair(self, name: str, mask: Tensor, like: Tensor, image_index: Tensor | None) -> Tensor:
        """Bring a mask that may be given per image to one per pair."""
        images = self.images
        if mask.dtype != torch.bool or mask.shape[1:] != like.shape[1:] or len(mask) not in (images, len(like)):
            raise ValueError(
                f"Expected {name} to be a bool mask of shape {(images, *like.shape[1:])} (one an image) or "
                f"{tuple(like.shape)} (one a pair) but got {str(mask.dtype).removeprefix('torch.')} "
                f"of shape {tuple(mask.shape)}."
            )
        return mask if image_index is None or len(mask) != images else mask.index_select(0, image_index)


def prepare(
    logits: Tensor,
    masks: dict[str, Tensor],
    *,
    valid: Tensor | None,
    image_index: Tensor | None,
    quantity: str = "log_likelihood",
    region: RegionChoice = "image",
    reduction: str = "mean",
    check: bool | None = None,
) -> tuple[list[Tensor], Measure]:
    """Check everything once; return labels [pairs, pixels], best mask first, and the Measure that all of them share.

    The plain way: everything is found in whole masks.
    """
    found = Masks(logits, masks, valid=valid, image_index=image_index, check=check)
    return found.labels, found.measure(quantity, region, reduction)


def even_weights(region: str, reduction: str, valid: Tensor, differing: Tensor, dtype: torch.dtype) -> Tensor:
    """Return what each pixel of a pair weighs, [pairs, 1], where `is_even`: from how many are judged and differ."""
    counts = valid if region == "image" else differing
    return pixel_weights((torch.ones_like(counts) if reduction == "sum" else counts)[:, None], dtype)


def is_even(region: RegionChoice, reduction: str) -> bool:
    """Return whether every pixel where masks differ counts, and all of a pair the same."""
    return isinstance(region, str) and region in ("image", "disagreement") and reduction in ("sum", "mean")
