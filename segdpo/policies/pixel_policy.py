"""A segmenter's logits as a distribution over masks: the pixels are independent, each a Bernoulli or a categorical.

One channel of logits is a Bernoulli, p(1) = σ(z); several are a categorical, p = softmax(z). The log-probability of a
mask is the sum over its pixels; what stands here is kept pixel by pixel, since that is what ratios are clipped at.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from segdpo.checks import check_labels, check_same_shape, check_shapes
from segdpo.kernels.drift import pixel_kl
from segdpo.kernels.pixels import score_dtype
from segdpo.regions import IGNORE

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
