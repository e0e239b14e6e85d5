"""Scores of a batch of pairs or rankings, from logits at the image's size or at low resolution."""

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
Logits = Tensor | LowResolution
"""Logits at the image's size, or those before the upsampling that ends a network."""


def logits_of(network: nn.Module, image: Tensor, low_resolution: bool) -> Logits:
    """Return a network's logits for images [images, channels, height, width]."""
    logits: Logits = network.low_resolution(image) if low_resolution else network(image)  # type: ignore[operator]
    return logits


def score_batch(
    scores: Iterable[Score], logits: Logits, batch: PreferenceBatch, *, wants_chosen: Collection[Score] = ()
) -> dict[Score, PairScores]:
    """Return each of the scores of the batch's pairs, or of its rankings.

    Args:
        scores: what to compute.
        logits: of the batch's images.
        batch: pairs or rankings.
        wants_chosen: scores whose s⁺ is read; computing it with the margin saves a pass over the logits.
    """
    if isinstance(logits, LowResolution):
        return {score: _score_low_resolution(score, logits, batch) for score in scores}
    if isinstance(batch, RankingBatch):
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
    if batch.shared is not None:
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


def kl_of_batch(policy: Logits, reference: Logits, batch: PreferenceBatch) -> Tensor:
    """Return KL(reference ‖ policy) where all masks of a pair (or ranking) agree; one number per pair (or ranking)."""
    if isinstance(batch, PairBatch):
        masks, index = (batch.chosen, batch.rejected), batch.image_index
    else:
        masks, index = as_pair(batch.ranking), None
    if isinstance(policy, Tensor) and isinstance(reference, Tensor):
        return score_drift(policy, reference, *masks, valid=batch.valid, image_index=index)
    if isinstance(policy, Tensor) or isinstance(reference, Tensor):
        raise TypeError(
            "Expected logits of policy and reference at the same resolution but one of them is upsampled; let your "
            "reference call self.logits(network, batch), or set low_resolution=false."
        )
    return low_resolution_drift(policy, reference, *masks, valid=batch.valid, image_index=index)


def weight_of(batch: PreferenceBatch) -> Tensor:
    """Return the weight of each pair [pairs], or 1 for each ranking [images]."""
    if isinstance(batch, PairBatch):
        return batch.weight
    return torch.ones(len(batch.ranking), device=batch.ranking.device)


def as_pair(ranking: Tensor) -> tuple[Tensor, Tensor]:
    """Return two masks that agree where all masks of a ranking agree, and ignore what any of them ignores."""
    best = ranking[:, 0].masked_fill((ranking == IGNORE).any(1), IGNORE)
    agree = (ranking == ranking[:, :1]).all(1)
    # Another legal class wherever any mask differs.
    return best, torch.where(agree, best, (best == 0).to(best.dtype))


def without_logits(scores: Mapping[Score, PairScores], wants_chosen: Collection[Score]) -> dict[Score, PairScores]:
    """Return the scores as plain numbers that keep no logits alive; s⁺ only of the scores in `wants_chosen`."""
    return {
        score: PairScores(
            chosen=pairs.chosen.detach() if score in wants_chosen else _chosen_is_missing,
            margin=pairs.margin.detach(),
            ranked=pairs.ranked.detach(),
        )
        for score, pairs in scores.items()
    }


def at_image_size(logits: Logits) -> Tensor:
    """Return logits that are at the image's size, as all are in evaluation."""
    if isinstance(logits, LowResolution):
        raise TypeError("Expected logits at the image's size but they are not upsampled; call in evaluation mode.")
    return logits


def check_low_resolution(network: nn.Module) -> None:
    """Refuse a network that cannot return its logits before the upsampling."""
    if not callable(getattr(network, "low_resolution", None)):
        raise ValueError(
            "Expected a network with a method low_resolution(image) -> LowResolution but "
            f"{type(network).__name__} has none; wrap it in segdpo.models.Segmenter, or set low_resolution=false."
        )


def _chosen_is_missing() -> NoReturn:
    raise RuntimeError(
        "Expected no term to read reference.chosen, since none did when the loss was built, but one does now; "
        "let the term read it on every batch."
    )


def _score_low_resolution(score: Score, low: LowResolution, batch: PreferenceBatch) -> PairScores:
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
