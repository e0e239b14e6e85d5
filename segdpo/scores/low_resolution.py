"""Scores of pairs and rankings from logits before their upsampling: the numbers of the plain path.

Margins go through the adjoint of the upsampling, over the disagreeing pixels alone; what reads every pixel is summed by
bands of rows. Logits of the image's size are never made.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from segdpo.checks import check_finite, check_labels, check_values
from segdpo.kernels import (
    LowResolution,
    Measure,
    PairIndex,
    dense_margin,
    entry_weights,
    index_of,
    log_sum_exp_cancels,
    low_resolution_margin,
    pixel_kl,
    step_factor,
    sum_of_bands,
    whole_score,
)
from segdpo.scores.measures import Masks, RegionChoice
from segdpo.scores.pairs import PairScores


def low_resolution_pairs(
    low: LowResolution,
    chosen: Tensor,
    rejected: Tensor,
    *,
    valid: Tensor | None = None,
    image_index: Tensor | None = None,
    quantity: str = "log_likelihood",
    region: RegionChoice = "image",
    reduction: str = "mean",
    index: PairIndex | None = None,
    check: bool | None = None,
) -> PairScores:
    """Score pairs of masks of the image's size under logits that are smaller; else as `score_pairs`.

    >>> small = LowResolution(torch.tensor([[[[0.0, 4.0]]]]), grid=(1, 4), size=(1, 4))
    >>> square, left = torch.ones(1, 1, 4).byte(), torch.tensor([[[1, 1, 0, 0]]]).byte()
    >>> low_resolution_pairs(small, square, left, reduction="sum").margin  # the right pixels read 3 and 4
    tensor([7.])
    """
    masks = _masks(low, {"chosen": chosen, "rejected": rejected}, valid, image_index, index, check)
    measure = masks.measure(quantity, region, reduction, sparse=True)
    if log_sum_exp_cancels(quantity, low.shape[1]):
        margin = _margin(low, masks.index, measure)
    else:
        margin = _dense_margin(low, masks.labels[0], masks.labels[1], measure)
    return PairScores(chosen=lambda: _whole(low, masks.labels[0], measure), margin=margin)


def low_resolution_ranking(
    low: LowResolution,
    ranking: Tensor,
    *,
    valid: Tensor | None = None,
    image_index: Tensor | None = None,
    quantity: str = "log_likelihood",
    region: RegionChoice = "image",
    reduction: str = "mean",
    check: bool | None = None,
) -> PairScores:
    """Score rankings [lists, K, height, width], best first; else as `score_ranking`."""
    named = {f"ranking[:, {k}]": mask for k, mask in enumerate(ranking.unbind(1))}
    masks = _masks(low, named, valid, image_index, None, check)
    measure = masks.measure(quantity, region, reduction)
    *better, worst = masks.labels
    if log_sum_exp_cancels(quantity, low.shape[1]):
        judged = masks.judged.flatten(1)
        margins = [_margin(low, index_of(mask, worst, judged), measure) for mask in better]
    else:
        margins = [_dense_margin(low, mask, worst, measure) for mask in better]
    return PairScores(
        chosen=lambda: _whole(low, better[0], measure),
        margin=margins[0],
        ranked=torch.stack([*margins, torch.zeros_like(margins[0])], dim=1),
    )


def low_resolution_drift(
    policy: LowResolution,
    reference: LowResolution,
    chosen: Tensor,
    rejected: Tensor,
    *,
    valid: Tensor | None = None,
    image_index: Tensor | None = None,
    check: bool | None = None,
) -> Tensor:
    """Return the mean KL(π_ref ‖ π_θ) over the pixels where the masks agree; else as `score_drift`."""
    if policy.shape != reference.shape:
        raise ValueError(
            f"Expected a policy of the reference's shape, {reference.shape}, but got {policy.shape}; compare networks "
            "of as many classes on the same images."
        )
    masks = _masks(policy, {"chosen": chosen, "rejected": rejected}, valid, image_index, None, check)
    agree = masks.judged.flatten(1) & (masks.labels[0] == masks.labels[1])

    def drift(bands: Sequence[Tensor], pixels: slice) -> Tensor:
        divergence = pixel_kl(*bands)
        if masks.image_index is not None:
            divergence = divergence.index_select(0, masks.image_index)
        return torch.where(agree[:, pixels], divergence, 0.0).sum(1)

    return sum_of_bands(drift, policy, reference) / agree.sum(1).clamp(min=1)


def _masks(
    low: LowResolution,
    named: dict[str, Tensor],
    valid: Tensor | None,
    image_index: Tensor | None,
    index: PairIndex | None,
    check: bool | None,
) -> Masks:
    # Of the image's size in its shape alone: it has the memory of one number.
    outline = low.logits.new_zeros(()).expand(low.shape)
    masks = Masks(outline, named, valid=valid, image_index=image_index, index=index, check=False)
    if low.logits.device.type != "cpu" or torch.compiler.is_compiling() if check is None else not check:
        return masks
    if index is None or check:
        check_values(dict(zip(named, masks.labels, strict=True)), masks.judged, low.logits)
    else:
        check_labels({"chosen": index.plus, "rejected": index.minus}, low.shape[1])
        check_finite([low.logits.detach().sum(dtype=torch.float32)], low.logits)
    return masks


def _margin(low: LowResolution, index: PairIndex, measure: Measure) -> Tensor:
    weight = entry_weights(measure, index) * step_factor(measure.quantity)
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
