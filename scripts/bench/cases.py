"""Tensors to measure with: logits, two masks an image that differ in a tenth of the pixels, and many masks an image."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import torch
import torch.nn.functional as F
from torch import Tensor

from segdpo import PairIndex, PairScores, PreferenceLoss, objectives, pair_index

DIFFERENT = 0.1
BETA = 2.0


@dataclass(frozen=True, eq=False)
class Case:
    """Masks of some images, one pair each; `reference` [images] is a cached margin."""

    chosen: Tensor
    rejected: Tensor
    reference: Tensor

    @cached_property
    def wide(self) -> tuple[Tensor, Tensor]:
        """Both masks as int64, as `gather` needs them; made beforehand, so that no side is charged for it."""
        return self.chosen.long(), self.rejected.long()

    @cached_property
    def index(self) -> PairIndex:
        """Where they differ, as the collate function finds it."""
        return pair_index(self.chosen.cpu(), self.rejected.cpu()).to(self.chosen.device)

    @property
    def cached(self) -> PairScores:
        """The reference's scores as a cache returns them."""
        return PairScores(chosen=torch.zeros_like(self.reference), margin=self.reference)


Space = int | Sequence[int]
"""The size of an image or a volume; a number is the side of a square."""


def make_case(images: int, classes: int, space: Space, device: torch.device, seed: int = 0) -> Case:
    """Draw blobs of classes, and a copy in which a tenth of the pixels, in blobs too, have another class."""
    generator = torch.Generator().manual_seed(seed)
    chosen = _blobs(generator, images, _shape(space), device).mul(classes).long().clamp(max=classes - 1)
    rejected = another_mask(chosen, classes, generator)
    reference = 0.1 * torch.randn(images, generator=generator)
    return Case(chosen.to(torch.uint8).to(device), rejected.to(torch.uint8).to(device), reference.to(device))


def another_mask(mask: Tensor, classes: int, generator: torch.Generator) -> Tensor:
    """Return the mask with a tenth of the pixels moved to another class."""
    changed = _blobs(generator, len(mask), tuple(mask.shape[1:]), mask.device) < DIFFERENT
    step = torch.randint(1, classes, (len(mask), *[1] * (mask.ndim - 1)), generator=generator)
    return torch.where(changed, (mask + step.to(mask.device)) % classes, mask)


def make_logits(
    images: int, classes: int, space: Space, device: torch.device, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Draw logits that require a gradient."""
    generator = torch.Generator(device).manual_seed(1)
    shape = (images, classes, *_shape(space))
    return torch.randn(shape, generator=generator, device=device, dtype=dtype).requires_grad_()


def margin_loss() -> PreferenceLoss:
    """Return dpo on the mean over the image: it reads the margin alone."""
    return PreferenceLoss(partial(objectives.dpo, beta=BETA))


def dpo_of(margin: Tensor, reference: Tensor) -> Tensor:
    """Return the mean of −log σ(βh), written out."""
    return -F.logsigmoid(BETA * (margin - reference)).mean()


def back(logits: Tensor, total: Callable[[], Tensor]) -> tuple[Tensor, Tensor]:
    """Run forward and backward; return the value and the gradient at the logits, which is then freed."""
    value = total()
    value.backward()
    gradient = logits.grad
    assert gradient is not None
    logits.grad = None
    return value.detach(), gradient


def assert_same(logits: Tensor, one: Callable[[], Tensor], other: Callable[[], Tensor]) -> None:
    """Stop unless both give the same value and the same gradient, up to the precision of the logits."""
    (value, gradient), (expected, wanted) = back(logits, one), back(logits, other)
    close = 2e-2 if logits.dtype == torch.bfloat16 else 2e-4
    torch.testing.assert_close(value.float(), expected.float(), rtol=close, atol=close)
    scale = float(wanted.abs().max())
    torch.testing.assert_close(gradient.float() / scale, wanted.float() / scale, rtol=close, atol=close)


def _shape(space: Space) -> tuple[int, ...]:
    return (space, space) if isinstance(space, int) else tuple(space)


def _blobs(generator: torch.Generator, images: int, shape: tuple[int, ...], device: torch.device) -> Tensor:
    """Draw smooth fields whose values are spread evenly from 0 to 1."""
    noise = torch.randn(images, 1, *(max(4, side // 16) for side in shape), generator=generator).to(device)
    smooth = F.interpolate(noise, shape, mode="bicubic" if len(shape) == 2 else "trilinear")[:, 0].flatten(1)
    ranks = smooth.argsort(1).argsort(1)
    return (ranks / ranks.shape[1]).reshape(images, *shape)
