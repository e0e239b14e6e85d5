"""Scores of single pixels, measures, and the types that all kernels share."""

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
"""For each measure the margins, and the chosen scores where they are wanted."""


@dataclass(frozen=True)
class Measure:
    """How the pixels of each pair are weighted and summed to a score.

    Attributes:
        inside: the pixels that count.
        weights: a table of weights. A pixel weighs `weights[pair, weigh_by]`, or `weights[pair, 0]` if the table has
            one column.
        weigh_by: the class of each pixel that selects its weight.
        image_index: the image of each pair; None: pair i belongs to image i.
        quantity: "log_likelihood" or "log_odds".
    """

    inside: Bool[Tensor, "pairs pixels"]
    weights: Float[Tensor, "pairs classes_or_1"]
    weigh_by: Labels
    image_index: ImageIndex | None
    quantity: str

    def spread(self, values: PixelScores) -> PixelScores:
        """Return weight · value for pixels inside and 0 for pixels outside."""
        table = self.weights
        weight = table if table.shape[1] == 1 else table.gather(1, self.weigh_by.long())
        return torch.where(self.inside, values, 0.0) * weight


class EvenMeasure(Measure):
    """A Measure with one weight for all pixels inside, where every pixel at which the masks differ is inside.

    A margin then never reads whole masks, so `inside` and `weigh_by` are computed only when they are first read.
    """

    def __init__(
        self,
        find: Callable[[], tuple[Tensor, Tensor]],
        weights: Float[Tensor, "pairs 1"],
        image_index: ImageIndex | None,
        quantity: str,
    ) -> None:
        # The frozen parent's own __init__ would need the masks now.
        vars(self).update(_find=find, weights=weights, image_index=image_index, quantity=quantity)

    @cached_property
    def _masks(self) -> tuple[Tensor, Tensor]:
        find: Callable[[], tuple[Tensor, Tensor]] = vars(self)["_find"]
        return find()

    @property
    def inside(self) -> Bool[Tensor, "pairs pixels"]:
        """The pixels that count."""
        return self._masks[0]

    @property
    def weigh_by(self) -> Labels:
        """The chosen labels; all pixels of a pair have the same weight, so they select nothing."""
        return self._masks[1]


def whole_score(logits: Logits, labels: Labels, measure: Measure) -> PerPair:
    """Return s = Σ weight · quantity over the pixels inside."""
    return measure.spread(pixel_scores(logits, labels, measure.image_index, measure.quantity)).sum(1)


def log_sum_exp_cancels(quantity: str, channels: int) -> bool:
    """Return whether a margin is a weighted sum of differences of logits.

    In log-odds of several classes each class is left out of its own log-sum-exp, so the terms do not cancel.
    """
    return quantity == "log_likelihood" or channels == 1


def difference_factor(quantity: str) -> float:
    """Return the factor of z[y⁺] − z[y⁻]: log-odds of one channel are ±z, and swapping the class changes them by 2z."""
    return 2.0 if quantity == "log_odds" else 1.0


def wide_dtype(values: Tensor) -> torch.dtype:
    """Return the dtype of sums: fp64, since fp32 sums lose the digits that the exact margin keeps; MPS has no fp64."""
    return torch.float32 if values.device.type == "mps" else torch.float64


def score_dtype(logits: Tensor) -> torch.dtype:
    """Return the dtype of scores: float32 for logits of at most 32 bits, float64 for float64."""
    return torch.promote_types(logits.dtype, torch.float32)


def pixel_scores(logits: Logits, labels: Labels, image_index: ImageIndex | None, quantity: str) -> PixelScores:
    """Return log p(label), or log p/(1−p), for every pixel of every mask; labels must be legal classes."""
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
    # log p − log(1−p) loses all digits as p → 1; a log-sum-exp without the class loses none.
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


def mean_kl(
    policy: Logits, reference: Logits, agree: Bool[Tensor, "pairs pixels"], image_index: ImageIndex | None
) -> Float[Tensor, "pairs"]:
    """Return the mean over the pixels in `agree` of KL(reference ‖ policy)."""
    divergence = _of_each_pair(pixel_kl(policy, reference), image_index)
    return torch.where(agree, divergence, 0.0).sum(1) / agree.sum(1).clamp(min=1)


def pixel_kl(policy: Logits, reference: Logits) -> Float[Tensor, "images pixels"]:
    """Return KL(reference ‖ policy) for every pixel; one channel is a Bernoulli, several a categorical."""
    policy, reference = (log_probs(logits) for logits in (policy, reference))
    return (reference.exp() * (reference - policy)).sum(1)


def log_probs(logits: Float[Tensor, "images channels *spatial"]) -> Float[Tensor, "images classes *spatial"]:
    """Return log p of every class at every pixel; one channel gives two classes."""
    logits = logits.to(score_dtype(logits))
    if logits.shape[1] == 1:
        return torch.cat([F.logsigmoid(-logits), F.logsigmoid(logits)], dim=1)
    return F.log_softmax(logits, dim=1)
