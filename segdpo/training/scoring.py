"""Scores of a batch: the policy's with their gradients, the reference's as plain numbers that hold no logits."""

from collections.abc import Collection, Iterable, Mapping
from typing import NoReturn

import torch
from torch import Tensor

from segdpo.data.batch import PairBatch, RankingBatch
from segdpo.regions import IGNORE
from segdpo.scores import PairScores, Score, score_drift, score_masks_by, score_pairs_by, score_ranking

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
