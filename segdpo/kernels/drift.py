"""How far the policy has moved where nobody disagreed."""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from segdpo.kernels.pixels import ImageIndex, Logits, score_dtype


def agreement_drift(
    policy: Logits, reference: Logits, agree: Bool[Tensor, "pairs pixels"], image_index: ImageIndex | None
) -> Float[Tensor, "pairs"]:
    """Return the mean over `agree` of KL(reference ‖ policy) of each pixel's class distribution."""
    divergence = pixel_kl(policy, reference)
    if image_index is not None:
        divergence = divergence.index_select(0, image_index)
    total = torch.where(agree, divergence, 0.0).sum(1)
    return total / agree.sum(1).clamp(min=1)


def pixel_kl(policy: Logits, reference: Logits) -> Float[Tensor, "images pixels"]:
    """Return KL(reference ‖ policy) for every pixel; one channel is a Bernoulli, several a categorical."""
    policy, reference = (_log_probs(logits) for logits in (policy, reference))
    return (reference.exp() * (reference - policy)).sum(1)


def _log_probs(logits: Logits) -> Float[Tensor, "images classes pixels"]:
    logits = logits.to(score_dtype(logits))
    if logits.shape[1] == 1:
        return torch.cat([F.logsigmoid(-logits), F.logsigmoid(logits)], dim=1)
    return F.log_softmax(logits, dim=1)
