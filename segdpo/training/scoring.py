"""Scores of a batch under the policy and under the reference, at full or low resolution."""

from collections.abc import Collection, Iterable, Mapping
from typing import NoReturn

import torch
from torch import Tensor, nn

from segdpo.checks import IGNORE
from segdpo.data import PairBatch, RankingBatch
from segdpo.kernels import LowResolution
from segdpo.scores import (
    MaskPairs,
    Pairs,
    PairScores,
    Rankings,
    Score,
    kl_to_reference,
    low_resolution_kl,
    low_resolution_pairs,
    low_resolution_ranking,
    score_masks_by,
    score_pairs_by,
    score_rankings_by,
)

PreferenceBatch = PairBatch | RankingBatch
Scores = Mapping[Score, PairScores]


def score_batch(
    scores: Iterable[Score], logits: Tensor, batch: PreferenceBatch, *, wants_chosen: Collection[Score] = ()
) -> dict[Score, PairScores]:
    """Return each of the scores of the batch's pairs, or of its rankings; s⁺ of those in `wants_chosen` at once."""
    if isinstance(batch, RankingBatch):
        return score_rankings_by(scores, logits, Rankings(batch.ranking, batch.valid))
    if batch.shared is None:
        return score_pairs_by(scores, logits, pairs_of(batch), wants_chosen=wants_chosen)
    shared = batch.shared
    masks = MaskPairs(shared.masks, shared.pairs, shared.mask_image, batch.valid, shared.index)
    return score_masks_by(scores, logits, masks, wants_chosen=wants_chosen)


def pairs_of(batch: PreferenceBatch) -> Pairs:
    """Return the pairs of a batch; for a ranking, pairs that agree where all of its masks do."""
    if isinstance(batch, PairBatch):
        return Pairs(batch.chosen, batch.rejected, batch.valid, batch.image_index, index=batch.index)
    return Pairs(*as_pair(batch.ranking), batch.valid)


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


def kl_of_logits(policy: Logits, reference: Logits, batch: PreferenceBatch) -> Tensor:
    """Return KL(reference ‖ policy) where all masks of a pair, or of a ranking, agree; one number for each."""
    pairs = pairs_of(batch)
    if isinstance(policy, LowResolution) and isinstance(reference, LowResolution):
        return low_resolution_kl(policy, reference, pairs)
    if isinstance(policy, LowResolution) or isinstance(reference, LowResolution):
        raise TypeError(
            "Expected logits of policy and reference at one resolution but one of them is upsampled; give a reference "
            "of your own that asks self.logits(network, batch), or leave low_resolution=false."
        )
    masks = pairs.chosen, pairs.rejected
    return kl_to_reference(policy, reference, *masks, valid=pairs.valid, image_index=pairs.image_index)


def _score(score: Score, low: LowResolution, batch: PreferenceBatch) -> PairScores:
    if isinstance(batch, PairBatch):
        return low_resolution_pairs(low, pairs_of(batch), score)
    return low_resolution_ranking(low, Rankings(batch.ranking, batch.valid), score)
