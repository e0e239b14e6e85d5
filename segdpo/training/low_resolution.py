"""Logits before their upsampling in training: asking networks for them, scoring batches from whichever there are."""

from collections.abc import Collection, Iterable

from torch import Tensor, nn

from segdpo.data.batch import PairBatch
from segdpo.kernels.low_resolution import LowResolution
from segdpo.scores import PairScores, Score
from segdpo.scores.low_resolution import low_resolution_drift, low_resolution_pairs, low_resolution_ranking
from segdpo.training.scoring import PreferenceBatch, as_pair, drift_of_batch, score_batch

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
            f"{type(network).__name__} has none; wrap it in segdpo.models.segmenter.Segmenter, or leave "
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
