"""Scores of a batch under the policy and under the reference, at full or low resolution."""

from collections.abc import Collection, Iterable, Mapping
from typing import NoReturn

import torch
from torch import Tensor, nn

from segdpo.checks import IGNORE
from segdpo.data import PairBatch, RankingBatch
from segdpo.kernels import LowResolution
from segdpo.scores import (
    PairScores,
    Score,
    low_resolution_drift,
    low_resolution_pairs,
    low_resolution_ranking,
    score_drift,
    score_masks_by,
    score_pairs_by,
    score_ranking,
)

PreferenceBatch = PairBatch | RankingBatch
Scores = Mapping[Score, PairScores]


def score_batch(
    scores: Iterable[Score], logits: Tensor, batch: PreferenceBatch, *, wants_chosen: Collection[Score] = ()
) -> dict[Score, PairScores]:
    """Return each of the scores of the batch's pairs, or of its rankings; s⁺ of those in `wants_chosen` at once."""
    if isinstance(batch, PairBatch) and batch.shared is not None:
        return score_masks_by(
            scores,
            logits,
            batch.shared.masks,
            batch.shared.pairs,
            batch.shared.mask_image,
            wants_chosen=wants_chosen,
            valid=batch.valid,
            index=batch.shared.index,
        )
    if isinstance(batch, PairBatch):
        return score_pairs_by(
            scores,
            logits,
            batch.chosen,
            batch.rejected,
            wants_chosen=wants_chosen,
            valid=batch.valid,
            image_index=batch.image_index,
            index=batch.index,
        )
    return {
        score: score_ranking(
            logits,
            batch.ranking,
            valid=batch.valid,
            quantity=score.quantity,
            region=score.region,
            reduction=score.reduction,
        )
        for score in scores
    }


def drift_of_batch(policy_logits: Tensor, reference_logits: Tensor, batch: PreferenceBatch) -> Tensor:
    """Return KL(reference ‖ policy) where all masks of a pair, or of a ranking, agree; one number each."""
    if isinstance(batch, PairBatch):
        pairs, index = (batch.chosen, batch.rejected), batch.image_index
        return score_drift(policy_logits, reference_logits, *pairs, valid=batch.valid, image_index=index)
    return score_drift(policy_logits, reference_logits, *as_pair(batch.ranking), valid=batch.valid)


def as_pair(ranking: Tensor) -> tuple[Tensor, Tensor]:
    """Return two masks that agree where all masks of a ranking do, and are judged where all are."""
    best = ranking[:, 0].masked_fill((ranking == IGNORE).any(1), IGNORE)
    agree = (ranking == ranking[:, :1]).all(1)
    # Another legal class wherever any mask disagrees.
    return best, torch.where(agree, best, (best == 0).to(best.dtype))


def weight_of(batch: PreferenceBatch) -> Tensor:
    """Return the weight of each pair; rankings all weigh 1."""
    if isinstance(batch, PairBatch):
        return batch.weight
    return torch.ones(len(batch.ranking), device=batch.ranking.device)


def without_logits(scores: Scores, whole: Collection[Score]) -> dict[Score, PairScores]:
    """Compute s⁺ of the scores in `whole` now and return numbers that keep no logits alive."""
    return {
        score: PairScores(
            chosen=pairs.chosen.detach() if score in whole else _gone,
            margin=pairs.margin.detach(),
            ranked=pairs.ranked.detach(),
        )
        for score, pairs in scores.items()
    }


def _gone() -> NoReturn:
    raise RuntimeError(
        "Expected no term to read reference.chosen, since none did when the loss was built, but one does now; "
        "let the term read it on every batch."
    )


Logits = Tensor | LowResolution


def logits_of(network: nn.Module, image: Tensor, low_resolution: bool) -> Logits:
    """Return a network's logits at the image's size, or those before its last upsampling."""
    logits: Logits = network.low_resolution(image) if low_resolution else network(image)  # type: ignore[operator]
    return logits


def check_network(network: nn.Module) -> None:
    """Refuse a network that cannot be asked for logits before their upsampling."""
    if not callable(getattr(network, "low_resolution", None)):
        raise ValueError(
            "Expected a network with a method low_resolution(image) -> LowResolution but "
            f"{type(network).__name__} has none; wrap it in segdpo.models.Segmenter, or leave "
            "low_resolution=false."
        )


def at_image_size(logits: Logits) -> Tensor:
    """Return logits that are at the image's size, as all are in evaluation."""
    if isinstance(logits, LowResolution):
        raise TypeError("Expected logits at the image's size but they are not upsampled; ask in evaluation mode.")
    return logits


def score_logits(
    scores: Iterable[Score], logits: Logits, batch: PreferenceBatch, *, wants_chosen: Collection[Score] = ()
) -> dict[Score, PairScores]:
    """Return each of the scores of the batch's pairs, or of its rankings; see `score_batch`."""
    if isinstance(logits, Tensor):
        return score_batch(scores, logits, batch, wants_chosen=wants_chosen)
    return {score: _score(score, logits, batch) for score in scores}


def drift_of_logits(policy: Logits, reference: Logits, batch: PreferenceBatch) -> Tensor:
    """Return KL(reference ‖ policy) where all masks of a pair, or of a ranking, agree; one number each."""
    if isinstance(policy, Tensor) and isinstance(reference, Tensor):
        return drift_of_batch(policy, reference, batch)
    if isinstance(policy, Tensor) or isinstance(reference, Tensor):
        raise TypeError(
            "Expected logits of policy and reference at one resolution but one of them is upsampled; give a reference "
            "of your own that asks self.logits(network, batch), or leave low_resolution=false."
        )
    if isinstance(batch, PairBatch):
        masks = (batch.chosen, batch.rejected)
        return low_resolution_drift(policy, reference, *masks, valid=batch.valid, image_index=batch.image_index)
    return low_resolution_drift(policy, reference, *as_pair(batch.ranking), valid=batch.valid)


def _score(score: Score, low: LowResolution, batch: PreferenceBatch) -> PairScores:
    quantity, region, reduction = score.choice(None)
    if isinstance(batch, PairBatch):
        return low_resolution_pairs(
            low,
            batch.chosen,
            batch.rejected,
            valid=batch.valid,
            image_index=batch.image_index,
            quantity=quantity,
            region=region,
            reduction=reduction,
            index=batch.index,
        )
    return low_resolution_ranking(
        low, batch.ranking, valid=batch.valid, quantity=quantity, region=region, reduction=reduction
    )
