"""Scores of pairs and rankings from logits before their upsampling; the numbers are those of the upsampled logits.

Margins use the adjoint of the upsampling, at the disagreeing pixels alone. Scores that read every pixel are summed by
bands of rows. Logits of the image's size are never stored.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from segdpo.kernels import (
    LowResolution,
    Measure,
    PairIndex,
    dense_margin,
    difference_factor,
    entry_weights,
    index_of,
    log_sum_exp_cancels,
    low_resolution_margin,
    pixel_kl,
    sum_of_bands,
    whole_score,
)
from segdpo.scores.masks import Pairs, Rankings
from segdpo.scores.score import PairScores, Score


def low_resolution_pairs(low: LowResolution, pairs: Pairs, score: Score, *, check: bool | None = None) -> PairScores:
    """Score pairs of masks of the image's size under logits of a smaller size, as `score_pairs` does.

    >>> small = LowResolution(torch.tensor([[[[0.0, 4.0]]]]), grid=(1, 4), size=(1, 4))
    >>> square, left = torch.ones(1, 1, 4).byte(), torch.tensor([[[1, 1, 0, 0]]]).byte()
    >>> low_resolution_pairs(small, Pairs(square, left), Score(reduction="sum")).margin  # the right pixels read 3 and 4
    tensor([7.])
    """
    masks = pairs.prepare(low, check)
    measure = masks.measure(score, sparse=True)
    if log_sum_exp_cancels(score.quantity, low.shape[1]):
        margin = _margin(low, masks.index, measure)
    else:
        margin = _dense_margin(low, masks.label(0), masks.label(1), measure)
    return PairScores(chosen=lambda: _whole(low, masks.label(0), measure), margin=margin, scored=masks.scored)


def low_resolution_ranking(
    low: LowResolution, rankings: Rankings, score: Score, *, check: bool | None = None
) -> PairScores:
    """Score rankings of masks of the image's size under logits of a smaller size, as `score_ranking` does."""
    masks = rankings.prepare(low, check)
    measure, (*better, worst) = masks.measure(score), masks.labels
    if log_sum_exp_cancels(score.quantity, low.shape[1]):
        counts = masks.counts.flatten(1)
        margins = [_margin(low, index_of(mask, worst, counts), measure) for mask in better]
    else:
        margins = [_dense_margin(low, mask, worst, measure) for mask in better]
    return PairScores(
        chosen=lambda: _whole(low, better[0], measure),
        margin=margins[0],
        ranked=torch.stack([*margins, torch.zeros_like(margins[0])], dim=1),
        scored=masks.scored,
    )


def low_resolution_kl(
    policy: LowResolution, reference: LowResolution, pairs: Pairs, *, check: bool | None = None
) -> Tensor:
    """Return the mean KL(π_ref ‖ π_θ) over the pixels where the masks agree, as `kl_to_reference` does."""
    if policy.shape != reference.shape:
        raise ValueError(
            f"Expected a policy of the reference's shape, {reference.shape}, but got {policy.shape}; compare networks "
            "of as many classes on the same images."
        )
    masks = pairs.prepare(policy, check)
    agree = masks.counts.flatten(1) & (masks.label(0) == masks.label(1))

    def kl(bands: Sequence[Tensor], pixels: slice) -> Tensor:
        divergence = pixel_kl(*bands)
        if masks.image_index is not None:
            divergence = divergence.index_select(0, masks.image_index)
        return torch.where(agree[:, pixels], divergence, 0.0).sum(1)

    return sum_of_bands(kl, policy, reference) / agree.sum(1).clamp(min=1)


def _margin(low: LowResolution, index: PairIndex, measure: Measure) -> Tensor:
    weight = entry_weights(measure, index) * difference_factor(measure.quantity)
    where = index.position, index.plus, index.minus
    return low_resolution_margin(low, *where, weight, pairs=len(index.valid), image_index=measure.image_index)


def _dense_margin(low: LowResolution, chosen: Tensor, rejected: Tensor, measure: Measure) -> Tensor:
    return sum_of_bands(
        lambda bands, px: dense_margin(bands[0], chosen[:, px], rejected[:, px], _part(measure, px)), low
    )


def _whole(low: LowResolution, labels: Tensor, measure: Measure) -> Tensor:
    return sum_of_bands(lambda bands, px: whole_score(bands[0], labels[:, px], _part(measure, px)), low)


def _part(measure: Measure, pixels: slice) -> Measure:
    inside, weigh_by = measure.inside[:, pixels], measure.weigh_by[:, pixels]
    return Measure(inside, measure.weights, weigh_by, measure.image_index, measure.quantity)
