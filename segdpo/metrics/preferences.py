"""Metrics of preferences: accuracy, margins and gains of pairs, IoU margins, KL per pixel; and the best of K masks."""

import math

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric

from segdpo.checks import IGNORE, check_same_shape
from segdpo.kernels import pixel_kl
from segdpo.metrics.masks import per_image_overlap
from segdpo.metrics.statistics import Doubles
from segdpo.scores import PairScores


def kl_per_pixel(policy_logits: Tensor, reference_logits: Tensor, valid: Tensor | None = None) -> Tensor:
    """Return the mean over valid pixels of KL(reference ‖ policy) in nats, one number an image; NaN without any.

    Args:
        policy_logits: [B, 1 or classes, *spatial].
        reference_logits: like `policy_logits`.
        valid: bool [B, *spatial]; left out: every pixel.

    >>> kl_per_pixel(torch.zeros(1, 1, 2, 2), torch.full((1, 1, 2, 2), 2.0))
    tensor([0.3278])
    """
    check_same_shape("policy_logits", policy_logits, "reference_logits", reference_logits)
    divergence = pixel_kl(policy_logits.flatten(2), reference_logits.flatten(2))
    if valid is None:
        return divergence.mean(1)
    if valid.shape != (len(policy_logits), *policy_logits.shape[2:]):
        raise ValueError(f"Expected valid [B, *spatial] like the logits but got {tuple(valid.shape)}.")
    inside = valid.flatten(1)
    return torch.where(inside, divergence, 0.0).sum(1) / inside.sum(1)


def pair_ious(
    prediction: Tensor, chosen: Tensor, rejected: Tensor, classes: int, background: bool = False
) -> tuple[Tensor, Tensor]:
    """Return IoU(prediction, chosen) and IoU(prediction, rejected) of each pair, float32 [P] each; needs no gold.

    A pixel that any of the three ignores is left out of both; two masks without any class agree, IoU 1.

    Args:
        prediction: class ids of each pair's image, uint8 or int64 [P, *spatial], 255 = ignore.
        chosen: class ids like `prediction`.
        rejected: class ids like `prediction`.
        classes: how many there are, class 0 included: 2 for binary masks.
        background: whether class 0 counts like any other.

    >>> chosen, rejected = torch.tensor([[[1, 1, 0, 0]]]), torch.tensor([[[1, 1, 1, 1]]])
    >>> pair_ious(torch.tensor([[[1, 0, 0, 0]]]), chosen, rejected, classes=2)
    (tensor([0.5000]), tensor([0.2500]))
    """
    known = prediction.masked_fill((chosen == IGNORE) | (rejected == IGNORE), IGNORE)
    with_chosen, with_rejected = (
        per_image_overlap(known, mask, classes, background)["iou"].nan_to_num(1.0) for mask in (chosen, rejected)
    )
    return with_chosen, with_rejected


# The rows of PairQuality's sums.
_MEANS = ("accuracy", "margin", "chosen_gain", "rejected_gain")


class PairQuality(Metric):
    """Means over all pairs of an epoch, over all processes, each pair by its weight.

    With h = margin(policy) − margin(reference), or the policy's own margin where there is no reference, `compute()` is

    * `accuracy`: share of pairs with h > 0; a policy that is its reference has h = 0 and accuracy 0;
    * `margin`: h;
    * `chosen_gain`, `rejected_gain`: s⁺_θ − s⁺_ref and s⁻_θ − s⁻_ref. Below 0 the mask became less likely: for the
      chosen one that is displacement;
    * `kl`: mean over images of KL(reference ‖ policy) per pixel;
    * `pairs`: how many there were.

    What was never given is NaN.

    >>> quality = PairQuality()
    >>> policy = PairScores(chosen=torch.tensor([-1.0, -2.0]), rejected=torch.tensor([-3.0, -2.0]))
    >>> reference = PairScores(chosen=torch.tensor([-1.5, -1.0]), rejected=torch.tensor([-2.0, -2.0]))
    >>> quality.update(policy, reference)
    >>> quality.compute()["accuracy"], quality.compute()["chosen_gain"]
    (tensor(0.5000), tensor(-0.2500))
    """

    full_state_update = False
    sums: Tensor
    weights: Tensor
    kl: Tensor
    images: Tensor
    pairs: Tensor

    def __init__(self) -> None:
        super().__init__()
        for state in ("sums", "weights"):
            self.add_state(state, torch.zeros(len(_MEANS)), dist_reduce_fx="sum")
        self.add_state("kl", torch.tensor(0.0), dist_reduce_fx="sum")
        for state in ("images", "pairs"):
            self.add_state(state, torch.tensor(0), dist_reduce_fx="sum")

    @torch.no_grad()
    def update(
        self,
        policy: PairScores,
        reference: PairScores | None = None,
        *,
        weight: Tensor | None = None,
        kl_per_pixel: Tensor | None = None,
    ) -> None:
        """Add a batch.

        Args:
            policy: its scores of P pairs.
            reference: its scores of the same pairs.
            weight: of the pairs, [P]; left out: 1.
            kl_per_pixel: of the batch's images, [B], from the function of that name.
        """
        # Margins are exact where differences of scores are not, so h comes from them.
        margin = policy.margin if reference is None else policy.margin - reference.margin
        found = [(margin > 0).to(margin.dtype), margin]
        if reference is not None:
            found += [policy.chosen - reference.chosen, policy.rejected - reference.rejected]
        weight = torch.ones_like(margin) if weight is None else weight
        check_same_shape("weight", weight, "margin", margin)
        rows = torch.stack(found).to(self.sums)
        self.sums[: len(rows)] += (rows * weight.to(rows)).sum(1)
        self.weights[: len(rows)] += weight.sum().to(rows)
        self.pairs += len(margin)
        if kl_per_pixel is not None:
            counts = ~kl_per_pixel.isnan()
            self.kl += kl_per_pixel[counts].sum().to(rows)
            self.images += counts.sum()

    def compute(self) -> dict[str, Tensor]:
        """Return the means so far."""
        means = dict(zip(_MEANS, self.sums / self.weights, strict=True))
        return means | {"kl": self.kl / self.images, "pairs": self.pairs}


def best_of(values: Doubles, rewards: Doubles, size: int) -> float:
    """Return an unbiased estimate of the value of the best of `size` masks, from all n masks that were drawn.

    The mean, over all subsets of `size` masks, of the value of the mask with the highest reward.

    Args:
        values: of each mask, [n].
        rewards: of each mask, [n], by which the best is chosen; NaN in any gives NaN.
        size: how many masks are chosen from, K ≤ n.

    >>> masks = np.array([0.25, 0.75])
    >>> best_of(masks, masks, 1), best_of(masks, masks, 2)
    (0.5, 0.75)
    """
    if np.isnan(rewards).any():
        return math.nan
    return float((best_probabilities(rewards, size) * values).sum())


def best_probabilities(rewards: Doubles, size: int) -> Doubles:
    """Return the probability of each of n masks to be the best of `size` that are drawn without replacement.

    C(r, K − 1)/C(n, K) for the mask with r masks below it; masks of equal reward share theirs equally.

    >>> best_probabilities(np.array([0.1, 0.9, 0.5]), 2).round(3).tolist()
    [0.0, 0.667, 0.333]
    """
    count = len(rewards)
    if not 1 <= size <= count:
        raise ValueError(f"Expected the best of 1 to {count} masks, as many as were drawn, but got {size}.")
    by_rank = np.array([math.comb(below, size - 1) / math.comb(count, size) for below in range(count)])
    found = np.empty(count)
    found[np.argsort(rewards, kind="stable")] = by_rank
    _, group = np.unique(rewards, return_inverse=True)
    return np.asarray((np.bincount(group, found) / np.bincount(group))[group])


def best_of_kl_bound(size: int) -> float:
    """Return log K − (K − 1)/K, an upper bound of KL(best of K ‖ one drawn) whatever the rewards.

    Beirami et al., "Theoretical guarantees on the best-of-n alignment policy", 2024; it is reached where no two masks
    have the same reward.

    >>> [round(best_of_kl_bound(size), 3) for size in (1, 2, 16)]
    [0.0, 0.193, 1.835]
    """
    return math.log(size) - (size - 1) / size
