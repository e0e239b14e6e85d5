"""Masks drawn from a segmenter's pixel distributions: pixel by pixel, or with noise that is smooth in space.

Pixel by pixel (`smoothness=0`) a mask is a draw from the policy itself: its log-probability is the sum that
pixel_policy.py says, ratios are exact, and at temperature 1 training on it is on-policy. With a temperature T it is
a draw from softmax(z/T), whose log-probability is that of the logits divided by T.

Smooth noise makes neighbours agree: a Gaussian field with correlations of `smoothness` pixels is put through its
distribution function, so that every single pixel still has exactly the chances softmax(z/T), but two pixels are no
longer independent. The joint probability of such a mask has no closed form, and the sum of its pixels'
log-probabilities is NOT its log-probability. Such masks are off-policy proposals. What holds is what looks at
one pixel at a time: constant rewards give zero gradient on average, per-pixel KL and entropy are unbiased. What does
not: the gradient is no longer that of the expected reward of independent pixels; each pixel is also credited with
what its neighbours did, since they do it together. That is a bias, bought for larger differences between masks.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

from segdpo.checks import check_range
from segdpo.kernels.pixels import score_dtype

# How many sigmas of the Gaussian are kept; beyond, its weight is below e^{-9}.
REACH = 3


@torch.no_grad()
def sample(
    logits: Float[Tensor, "images channels *spatial"],
    count: int,
    *,
    temperature: float = 1.0,
    smoothness: float = 0.0,
    generator: torch.Generator | None = None,
) -> UInt8[Tensor, "masks *spatial"]:
    """Return `count` masks of each image, image by image: masks [images · count, *spatial].

    Args:
        logits: one channel (sigmoid) or one a class (softmax).
        count: masks an image.
        temperature: what logits are divided by; 1: the policy as it is.
        smoothness: σ in pixels of the noise's Gaussian correlation; 0: independent pixels.
        generator: of random numbers, on the device of the logits; left out: the global one.
    """
    check_range("count", count, least=1)
    check_range("temperature", temperature, above=0)
    check_range("smoothness", smoothness, least=0)
    if not torch.isfinite(logits).all():
        raise ValueError("Expected finite logits to sample masks from but some are NaN or infinite; lower the rate.")
    logits = logits.to(score_dtype(logits)) / temperature
    # One mask of every image at a time: the noise of all classes of all masks at once would take count times as much.
    drawn = [_draw(logits, smoothness, generator) for _ in range(count)]
    return torch.stack(drawn, 1).flatten(0, 1)


def _draw(logits: Tensor, smoothness: float, generator: torch.Generator | None) -> Tensor:
    uniform = _uniform(logits, smoothness, generator)
    if logits.shape[1] == 1:
        return (uniform < logits.sigmoid())[:, 0].byte()
    # Gumbel noise, one field a class: no class is the neighbour of another, as in a cumulative sum they would be.
    tiny = torch.finfo(uniform.dtype).tiny
    return (logits - (-uniform.clamp(min=tiny).log()).clamp(min=tiny).log()).argmax(1).byte()


def _uniform(like: Tensor, smoothness: float, generator: torch.Generator | None) -> Tensor:
    """Return numbers that are uniform at every place, and alike at places that are near each other."""
    if smoothness == 0:
        return torch.rand(like.shape, dtype=like.dtype, device=like.device, generator=generator)
    reach = math.ceil(REACH * smoothness)
    # Wider by the kernel's reach: at the border too, each place is a sum of as many independent numbers.
    shape = [*like.shape[:2], *(side + 2 * reach for side in like.shape[2:])]
    field = torch.randn(shape, dtype=like.dtype, device=like.device, generator=generator)
    places = torch.arange(-reach, reach + 1, dtype=like.dtype, device=like.device)
    kernel = torch.exp(-((places / smoothness) ** 2))
    kernel = kernel / kernel.square().sum().sqrt()
    for axis in range(2, field.ndim):
        moved = field.movedim(axis, -1)
        smooth = F.conv1d(moved.reshape(-1, 1, moved.shape[-1]), kernel.view(1, 1, -1))
        field = smooth.view(*moved.shape[:-1], -1).movedim(-1, axis)
    uniform: Tensor = torch.special.ndtr(field)
    return uniform
