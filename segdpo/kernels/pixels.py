"""Scores of single pixels, and the types that all kernels share."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Integer
from torch import Tensor

Logits = Float[Tensor, "images channels pixels"]
Labels = Integer[Tensor, "pairs pixels"]
ImageIndex = Integer[Tensor, "pairs"]
PixelScores = Float[Tensor, "pairs pixels"]
PerPair = Float[Tensor, "pairs"]
Scores = tuple[list[PerPair], list[PerPair | None]]
"""Of each measure the margins, and the chosen scores where they are wanted."""


@dataclass(frozen=True)
class Measure:
    """How pixels become scores: which are counted, how much each, of which image, in which quantity.

    The weight of a pixel inside is `weights[pair, weigh_by]`, or `weights[pair, 0]` if the table has one column.
    """

    inside: Bool[Tensor, "pairs pixels"]
    weights: Float[Tensor, "pairs classes_or_1"]
    weigh_by: Labels
    image_index: ImageIndex | None
    quantity: str

    def spread(self, values: PixelScores) -> PixelScores:
        """Return weight · value inside and 0 outside, pixel by pixel."""
        table = self.weights
        weight = table if table.shape[1] == 1 else table.gather(1, self.weigh_by.long())
        return torch.where(self.inside, values, 0.0) * weight


class EvenMeasure(Measure):
    """A Measure under which all pixels inside weigh the same, and every pixel where the masks differ is inside.

    So a margin needs no look at whole masks: `inside` and `weigh_by` are found when first asked for.
    """

    def __init__(
        self,
        find: Callable[[], tuple[Tensor, Tensor]],
        weights: Float[Tensor, "pairs 1"],
        image_index: ImageIndex | None,
        quantity: str,
    ) -> None:
        # Around the frozen parent's own, which would ask for the masks now.
        vars(self).update(_find=find, weights=weights, image_index=image_index, quantity=quantity)

    @cached_property
    def _masks(self) -> tuple[Tensor, Tensor]:
        find: Callable[[], tuple[Tensor, Tensor]] = vars(self)["_find"]
        return find()

    @property
    def inside(self) -> Bool[Tensor, "pairs pixels"]:
        """Which pixels are counted."""
        return self._masks[0]

    @property
    def weigh_by(self) -> Labels:
        """What picks a pixel's weight: here nothing does, all of a pair have one."""
        return self._masks[1]


def whole_score(logits: Logits, labels: Labels, measure: Measure) -> PerPair:
    """Return s = Σ weight · quantity over the pixels inside."""
    return measure.spread(pixel_scores(logits, labels, measure.image_index, measure.quantity)).sum(1)


def log_sum_exp_cancels(quantity: str, channels: int) -> bool:
    """Whether a margin is a sum of differences of logits.

    In log-odds of several classes each is left out of its own log-sum-exp, so it does not cancel.
    """
    return quantity == "log_likelihood" or channels == 1


def step_factor(quantity: str) -> float:
    """Return what z[y⁺] − z[y⁻] counts: log-odds of one channel are ±z, and swapping the class moves them by 2z."""
    return 2.0 if quantity == "log_odds" else 1.0


def wide_dtype(values: Tensor) -> torch.dtype:
    """Return what sums are made in: adding in fp32 loses what the identity has saved, and MPS has no fp64."""
    return torch.float32 if values.device.type == "mps" else torch.float64


def score_dtype(logits: Tensor) -> torch.dtype:
    """Scores are fp32 whatever the logits are, and float64 for float64 (gradient checks)."""
    return torch.promote_types(logits.dtype, torch.float32)


def pixel_scores(logits: Logits, labels: Labels, image_index: ImageIndex | None, quantity: str) -> PixelScores:
    """Return log p(label), or log p/(1−p), for every pixel of every mask; labels must lie within the classes."""
    logits = logits.to(score_dtype(logits))
    if logits.shape[1] == 1:
        return _binary(logits, labels, image_index, quantity)
    if quantity == "log_odds":
        return _log_odds(_of_each_pair(logits, image_index), labels)
    return _pick(F.log_softmax(logits, dim=1), labels, image_index)


def log_odds_rows(rows: Float[Tensor, "rows channels"], labels: Integer[Tensor, "rows"]) -> Float[Tensor, "rows"]:
    """Return log p/(1−p) = z[label] − logsumexp of the other classes, for rows of logits."""
    return _log_odds(rows.T[None], labels[None])[0]


def _binary(logits: Logits, labels: Labels, image_index: ImageIndex | None, quantity: str) -> PixelScores:
    logit = _of_each_pair(logits, image_index)[:, 0]
    odds = torch.where(labels > 0, logit, -logit)
    return odds if quantity == "log_odds" else F.logsigmoid(odds)


def _log_odds(logits: Float[Tensor, "pairs channels pixels"], labels: Labels) -> PixelScores:
    # log p − log(1−p) loses every digit as p → 1; leaving the class out of the log-sum-exp loses none.
    index = labels.long()[:, None]
    others = logits.scatter(1, index, float("-inf")).logsumexp(1)
    return logits.gather(1, index)[:, 0] - others


def _pick(log_probs: Logits, labels: Labels, image_index: ImageIndex | None) -> PixelScores:
    if image_index is None:
        return log_probs.gather(1, labels.long()[:, None])[:, 0]
    # `take` reads each pair's own image in place; log_probs[image_index] would copy all classes for every pair.
    channels, pixels = log_probs.shape[1:]
    pixel = torch.arange(pixels, device=labels.device)
    return torch.take(log_probs, (image_index[:, None] * channels + labels) * pixels + pixel)


def _of_each_pair(values: Tensor, image_index: ImageIndex | None) -> Tensor:
    return values if image_index is None else values.index_select(0, image_index)


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
