"""The distribution over masks that logits define: log-probability, entropy, KL, the most probable mask, samples."""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from segdpo.checks import IGNORE, check_labels, check_range, check_same_shape, check_shapes
from segdpo.kernels import agreement_drift, pixel_kl, score_dtype
from segdpo.scores.measures import prepare

Logits = Float[Tensor, "images channels *spatial"]
PerPixel = Float[Tensor, "images *spatial"]


def log_prob(
    logits: Logits,
    masks: Int[Tensor, "masks *spatial"] | UInt8[Tensor, "masks *spatial"],
    image_index: Tensor | None = None,
) -> Float[Tensor, "masks *spatial"]:
    """Return log p of the mask's class at every pixel; 0, without a gradient, where the mask is ignored (255).

    `image_index` [masks] says which image each mask belongs to; left out: one mask an image.

    >>> log_prob(torch.zeros(1, 1, 1, 2), torch.tensor([[[1, 255]]]))
    tensor([[[-0.6931,  0.0000]]])
    """
    check_shapes(logits, {"masks": masks}, image_index)
    inside = masks != IGNORE
    labels = masks.masked_fill(~inside, 0)
    check_labels({"masks": labels}, logits.shape[1])
    logits = logits.to(score_dtype(logits))
    if logits.shape[1] == 1:
        own = logits[:, 0] if image_index is None else logits[:, 0].index_select(0, image_index)
        found = F.logsigmoid(torch.where(labels > 0, own, -own))
    else:
        # Not kernels.pixels.pixel_scores, whose `take` has no deterministic gradient on CUDA; `gather` has one.
        # One row for each class of each image, so that no image's logits are copied for each of its masks.
        rows = F.log_softmax(logits, dim=1).flatten(0, 1)
        images = torch.arange(len(masks), device=masks.device) if image_index is None else image_index
        first = (images * logits.shape[1]).view(-1, *[1] * (masks.ndim - 1))
        found = rows.gather(0, first + labels.long())
    return torch.where(inside, found, 0.0)


def entropy(logits: Logits) -> PerPixel:
    """Return −Σ_c p_c log p_c of every pixel, in nats.

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
    # The kernel is named after preference training's drift, KL(reference ‖ policy): the roles are swapped here.
    return pixel_kl(reference_logits.flatten(2), logits.flatten(2)).view(len(logits), *logits.shape[2:])


def predicted_classes(logits: Logits) -> UInt8[Tensor, "images *spatial"]:
    """Return the most likely mask, class ids: logit > 0 for one channel, else the class of the largest logit."""
    return (logits[:, 0] > 0).byte() if logits.shape[1] == 1 else logits.argmax(1).byte()


def log_probs(logits: Logits) -> Float[Tensor, "images classes *spatial"]:
    """Return log p of every class at every pixel; two classes for one channel."""
    logits = logits.to(score_dtype(logits))
    if logits.shape[1] == 1:
        return torch.cat([F.logsigmoid(-logits), F.logsigmoid(logits)], dim=1)
    return F.log_softmax(logits, dim=1)


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


def score_drift(
    policy_logits: Tensor,
    reference_logits: Tensor,
    chosen: Tensor,
    rejected: Tensor,
    *,
    valid: Tensor | None = None,
    image_index: Tensor | None = None,
    check: bool | None = None,
) -> Tensor:
    """Return the mean KL(π_ref ‖ π_θ) over the valid pixels where the two masks agree, one number a pair.

    What nobody judged should stay as it was: `hold_anchor` keeps this small. 0 where the masks agree nowhere.
    """
    check_same_shape("policy_logits", policy_logits, "reference_logits", reference_logits)
    labels, measure = prepare(
        policy_logits,
        {"chosen": chosen, "rejected": rejected},
        valid=valid,
        image_index=image_index,
        check=check,
    )
    agree = measure.inside & (labels[0] == labels[1])
    return agreement_drift(policy_logits.flatten(2), reference_logits.flatten(2), agree, measure.image_index)
