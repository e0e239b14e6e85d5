"""The distribution over masks that logits define: log-probability, entropy, KL, the most likely mask, samples."""

import math
import warnings
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from segdpo.checks import IGNORE, check_labels, check_range, check_same_shape, check_shapes, ignored_value
from segdpo.kernels import log_probs, mean_kl, not_ignored, pixel_kl, score_dtype
from segdpo.scores.masks import Pairs
from segdpo.scores.outputs import ModelOutput, logits_in

Logits = Float[Tensor, "images channels *spatial"]
PerPixel = Float[Tensor, "images *spatial"]
ClassIds = UInt8[Tensor, "images *spatial"] | Int[Tensor, "images *spatial"]


def log_prob(
    logits: Logits,
    masks: Int[Tensor, "masks *spatial"] | UInt8[Tensor, "masks *spatial"],
    image_index: Tensor | None = None,
    ignore: int | None = None,
) -> Float[Tensor, "masks *spatial"]:
    """Return log p of the mask's class at every pixel; 0, without a gradient, at ignored pixels.

    Args:
        logits: one channel (sigmoid) or one for each class (softmax).
        masks: class ids, 255 = ignore.
        image_index: [masks], the image of each mask; None: mask i belongs to image i.
        ignore: as for `score_pairs`.

    >>> log_prob(torch.zeros(1, 1, 1, 2), torch.tensor([[[1, 255]]]))
    tensor([[[-0.6931,  0.0000]]])
    """
    check_shapes(logits, {"masks": masks}, image_index)
    inside = not_ignored(masks, ignored_value(ignore, logits.shape[1]))
    labels = masks.masked_fill(~inside, 0)
    check_labels({"masks": labels}, logits.shape[1])
    logits = logits.to(score_dtype(logits))
    if logits.shape[1] == 1:
        own = logits[:, 0] if image_index is None else logits[:, 0].index_select(0, image_index)
        found = F.logsigmoid(torch.where(labels > 0, own, -own))
    else:
        # Not pixel_scores of the kernels: its `take` has no deterministic gradient on CUDA, and `gather` has one.
        # One row for each class of each image, so that logits are not copied for each mask of an image.
        rows = F.log_softmax(logits, dim=1).flatten(0, 1)
        images = torch.arange(len(masks), device=masks.device) if image_index is None else image_index
        first = (images * logits.shape[1]).view(-1, *[1] * (masks.ndim - 1))
        found = rows.gather(0, first + labels.long())
    return torch.where(inside, found, 0.0)


def entropy(logits: Logits) -> PerPixel:
    """Return the entropy −Σ_c p_c log p_c of every pixel, in nats.

    >>> entropy(torch.zeros(1, 1, 1, 1))
    tensor([[[0.6931]]])
    """
    chances = log_probs(logits)
    return -(chances.exp() * chances).sum(1)


def kl(logits: Logits, reference_logits: Logits) -> PerPixel:
    """Return KL(policy ‖ reference) of every pixel in nats, exactly: Σ_c p_c (log p_c − log q_c).

    >>> kl(torch.zeros(1, 1, 1, 1), torch.full((1, 1, 1, 1), 2.0))
    tensor([[[0.4338]]])
    """
    check_same_shape("reference_logits", reference_logits, "logits", logits)
    # The kernel computes KL(second ‖ first).
    return pixel_kl(reference_logits.flatten(2), logits.flatten(2)).view(len(logits), *logits.shape[2:])


def kl_to_reference(
    policy_logits: ModelOutput,
    reference_logits: ModelOutput,
    chosen: Tensor,
    rejected: Tensor,
    *,
    valid: Tensor | None = None,
    pair_valid: Tensor | None = None,
    image_index: Tensor | None = None,
    ignore: int | None = None,
    check: bool | None = None,
) -> Float[Tensor, "pairs"]:
    """Return the mean KL(π_ref ‖ π_θ) over the valid pixels where the two masks of a pair agree.

    A pair says nothing about these pixels; `anchors.hold` keeps the policy near the reference there.

    Args:
        policy_logits: [images, channels, *spatial].
        reference_logits: of the same shape; they get no gradient.
        chosen: class ids [pairs, *spatial], 255 = ignore.
        rejected: like `chosen`.
        valid: bool [images, *spatial]; False = the pixel does not count, in any pair of the image.
        pair_valid: bool [pairs, *spatial]; False = the pixel does not count in this pair.
        image_index: [pairs], the image of each pair; None: pair i belongs to image i.
        ignore: as for `score_pairs`.
        check: as for `score_pairs`.

    Returns:
        [pairs], in nats; 0 where the masks agree nowhere.

    >>> square, left = torch.tensor([[[1, 1]]]), torch.tensor([[[1, 0]]])  # they agree in the first pixel
    >>> kl_to_reference(torch.zeros(1, 1, 1, 2), torch.full((1, 1, 1, 2), 2.0), square, left)
    tensor([0.3278])
    """
    policy, reference = logits_in(policy_logits, "policy_logits"), logits_in(reference_logits, "reference_logits")
    pairs = Pairs(chosen, rejected, valid, image_index, pair_valid=pair_valid, ignore=ignore)
    return kl_of_pairs(policy, reference, pairs, check=check)


def kl_of_pairs(
    policy_logits: Logits, reference_logits: Logits, pairs: Pairs, *, check: bool | None = None
) -> Float[Tensor, "pairs"]:
    """Return `kl_to_reference` of pairs."""
    check_same_shape("policy_logits", policy_logits, "reference_logits", reference_logits)
    masks = pairs.prepare(policy_logits, check)
    agree = masks.counts.flatten(1) & (masks.label(0) == masks.label(1))
    return mean_kl(policy_logits.flatten(2), reference_logits.detach().flatten(2), agree, masks.image_index)


def score_drift(
    policy_logits: Tensor, reference_logits: Tensor, chosen: Tensor, rejected: Tensor, **options: Any
) -> Tensor:
    """Return `kl_to_reference`; the old name, for one release."""
    warnings.warn("score_drift is now kl_to_reference; use segdpo.kl_to_reference.", DeprecationWarning, stacklevel=2)
    return kl_to_reference(policy_logits, reference_logits, chosen, rejected, **options)


def predicted_classes(logits: Logits) -> ClassIds:
    """Return the most likely mask as class ids: logit > 0 for one channel, else the class of the largest logit.

    uint8; int64 for more than 255 classes.
    """
    return (logits[:, 0] > 0).byte() if logits.shape[1] == 1 else _as_ids(logits.argmax(1), logits.shape[1])


def _as_ids(classes: Int[Tensor, "*shape"], count: int) -> Int[Tensor, "*shape"] | UInt8[Tensor, "*shape"]:
    """Return class ids as uint8 where that can hold them and IGNORE."""
    return classes.byte() if count <= IGNORE else classes


# Radius of the Gaussian kernel in units of sigma; weights beyond it are below e^{-9}.
REACH = 3


@torch.no_grad()
def sample(
    logits: Float[Tensor, "images channels *spatial"],
    count: int,
    *,
    temperature: float = 1.0,
    smoothness: float = 0.0,
    generator: torch.Generator | None = None,
) -> ClassIds:
    """Draw `count` masks of each image; the masks of an image follow each other.

    Args:
        logits: one channel (sigmoid) or one for each class (softmax).
        count: masks per image.
        temperature: divides the logits.
        smoothness: σ in pixels of the Gaussian correlation of the noise; 0: independent pixels.
        generator: a generator on the device of the logits; None: the global one.

    Returns:
        Class ids [images · count, *spatial], uint8; int64 for more than 255 classes.
    """
    check_range("count", count, least=1)
    check_range("temperature", temperature, above=0)
    check_range("smoothness", smoothness, least=0)
    if not torch.isfinite(logits).all():
        raise ValueError(
            "Expected finite logits to sample masks from but some are NaN or infinite; lower the learning rate."
        )
    logits = logits.to(score_dtype(logits)) / temperature
    # One mask of every image at a time: noise for all masks at once would take `count` times the memory.
    drawn = [_draw(logits, smoothness, generator) for _ in range(count)]
    return torch.stack(drawn, 1).flatten(0, 1)


def _draw(logits: Tensor, smoothness: float, generator: torch.Generator | None) -> Tensor:
    uniform = _uniform(logits, smoothness, generator)
    if logits.shape[1] == 1:
        return (uniform < logits.sigmoid())[:, 0].byte()
    # The Gumbel trick with one noise field per class. A cumulative sum would make neighbours of consecutive classes.
    tiny = torch.finfo(uniform.dtype).tiny
    classes = (logits - (-uniform.clamp(min=tiny).log()).clamp(min=tiny).log()).argmax(1)
    return _as_ids(classes, logits.shape[1])


def _uniform(like: Tensor, smoothness: float, generator: torch.Generator | None) -> Tensor:
    """Return numbers that are uniform at every pixel and correlated between near pixels."""
    if smoothness == 0:
        return torch.rand(like.shape, dtype=like.dtype, device=like.device, generator=generator)
    reach = math.ceil(REACH * smoothness)
    # Padded by the kernel's radius, so that pixels at the border are sums of as many independent numbers.
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
