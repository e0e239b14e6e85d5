"""Scores of a batch of pairs or rankings, from logits at the image's size or at low resolution."""

from collections.abc import Collection, Iterable, Mapping
from typing import NoReturn

import torch
from torch import Tensor, nn

from segdpo.checks import IGNORE
from segdpo.data import PairBatch, RankingBatch
from segdpo.kernels import LowResolution
from segdpo.preferences import whole_or_in_windows
from segdpo.scores import (
    MaskPairs,
    Pairs,
    PairScores,
    Rankings,
    Score,
    kl_of_pairs,
    low_resolution_kl,
    low_resolution_pairs,
    low_resolution_ranking,
    score_masks_by,
    score_pairs_by,
    score_rankings_by,
)

PreferenceBatch = PairBatch | RankingBatch
Logits = Tensor | LowResolution
"""Logits at the image's size, or those before the upsampling that ends a network."""


def logits_of(network: nn.Module, image: Tensor, low_resolution: bool, window: int | None = None) -> Logits:
    """Return a network's logits for images [images, channels, height, width]; larger ones than `window` in windows."""
    if low_resolution:
        logits: Logits = network.low_resolution(image)  # type: ignore[operator]
        return logits
    return whole_or_in_windows(network, image, window)


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
    if isinstance(batch, RankingBatch):
        rankings = Rankings(batch.ranking, batch.valid, ignore=IGNORE)
        if isinstance(logits, LowResolution):
            return {score: low_resolution_ranking(logits, rankings, score) for score in scores}
        return score_rankings_by(scores, logits, rankings)
    if isinstance(logits, LowResolution):
        return {score: low_resolution_pairs(logits, pairs_of(batch), score) for score in scores}
    if batch.shared is None:
        return score_pairs_by(scores, logits, pairs_of(batch), wants_chosen=wants_chosen)
    shared = batch.shared
    masks = MaskPairs(shared.masks, shared.pairs, shared.mask_image, batch.valid, shared.index, IGNORE)
    return score_masks_by(scores, logits, masks, wants_chosen=wants_chosen)


def kl_of_batch(policy: Logits, reference: Logits, batch: PreferenceBatch) -> Tensor:
    """Return KL(reference ‖ policy) where all masks of a pair (or ranking) agree; one number per pair (or ranking)."""
    pairs = pairs_of(batch)
    if isinstance(policy, LowResolution) and isinstance(reference, LowResolution):
        return low_resolution_kl(policy, reference, pairs)
    if isinstance(policy, LowResolution) or isinstance(reference, LowResolution):
        raise TypeError(
            "Expected logits of policy and reference at the same resolution but one of them is upsampled; let your "
            "reference call self.logits(network, batch), or set low_resolution=false."
        )
    return kl_of_pairs(policy, reference, pairs)


def weight_of(batch: PreferenceBatch) -> Tensor:
    """Return the weight of each pair [pairs], or of each ranking [images]: 1, or 0 in a batch without valid pixels."""
    if isinstance(batch, PairBatch):
        return batch.weight
    return torch.full((len(batch.ranking),), 0.0 if batch.empty else 1.0, device=batch.ranking.device)


def images_of(batch: PreferenceBatch) -> Tensor:
    """Return the number of the image of each pair [pairs], or of each ranking [images]."""
    return batch.image_index if isinstance(batch, PairBatch) else torch.arange(len(batch.ids))


def pairs_of(batch: PreferenceBatch) -> Pairs:
    """Return the pairs of a batch; for rankings, one pair each that agrees where all of its masks agree."""
    if isinstance(batch, PairBatch):
        return Pairs(batch.chosen, batch.rejected, batch.valid, batch.image_index, index=batch.index, ignore=IGNORE)
    ranking = batch.ranking
    best = ranking[:, 0].masked_fill((ranking == IGNORE).any(1), IGNORE)
    agree = (ranking == ranking[:, :1]).all(1)
    # Another legal class wherever any mask differs.
    return Pairs(best, torch.where(agree, best, (best == 0).to(best.dtype)), batch.valid, ignore=IGNORE)


def without_logits(scores: Mapping[Score, PairScores], wants_chosen: Collection[Score]) -> dict[Score, PairScores]:
    """Return the scores as plain numbers that keep no logits alive; s⁺ only of the scores in `wants_chosen`."""
    return {
        score: PairScores(
            chosen=pairs.chosen.detach() if score in wants_chosen else _chosen_is_missing,
            margin=pairs.margin.detach(),
            ranked=pairs.ranked.detach(),
            scored=pairs.scored,
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
