"""Rankings of K masks under one network's logits."""

import torch
from torch import Tensor

from segdpo.kernels.dispatch import choose_backend, scores_by
from segdpo.kernels.fused import fused_chosen
from segdpo.kernels.pixels import Measure
from segdpo.measures import Masks, RegionChoice
from segdpo.scores.pair_scores import PairScores
from segdpo.scores.pairs import unless_written


def score_ranking(
    logits: Tensor,
    ranking: Tensor,
    *,
    valid: Tensor | None = None,
    image_index: Tensor | None = None,
    quantity: str = "log_likelihood",
    region: RegionChoice = "image",
    reduction: str = "mean",
    check: bool | None = None,
) -> PairScores:
    """Score rankings of K masks, `ranking` [lists, K, *spatial], best first; for `plackett_luce`.

    All K masks share one set of pixels and the weights of the best one, so that differences are exact margins.
    `chosen` and `rejected` of the result are the best and the worst mask, so that anchors work on rankings too.
    The region "disagreement" holds the pixels where any two masks differ; a region function sees best and worst.
    """
    if ranking.ndim != logits.ndim or ranking.shape[1] < 2:
        raise ValueError(
            "Expected a ranking of shape [lists, K, *spatial] with K of at least 2 masks, best first, "
            f"but got {tuple(ranking.shape)} for logits {tuple(logits.shape)}."
        )
    masks = Masks(
        logits,
        {f"ranking[:, {k}]": mask for k, mask in enumerate(ranking.unbind(1))},
        valid=valid,
        image_index=image_index,
        check=check,
    )
    measure = masks.measure(quantity, region, reduction)
    flat, (*better, worst), others = logits.flatten(2), masks.labels, len(masks.labels) - 1
    # Relative to the worst mask: K − 1 exact margins say all that a ranking loss can see. As pairs of their images,
    # so that one pass over the logits makes them all.
    lists = torch.arange(len(worst), device=worst.device)
    image = lists if measure.image_index is None else measure.image_index
    every = Measure(
        measure.inside.repeat(others, 1),
        measure.weights.repeat(others, 1),
        measure.weigh_by.repeat(others, 1),
        image.repeat(others),
        quantity,
    )
    margins, _ = scores_by(choose_backend(logits), flat, torch.cat(better), worst.repeat(others, 1), [every], [False])
    by_rank = margins[0].unflatten(0, (others, len(worst)))
    return PairScores(
        chosen=unless_written(logits, lambda: fused_chosen(flat, better[0], measure)),
        margin=by_rank[0],
        ranked=torch.cat([by_rank, torch.zeros_like(by_rank[:1])]).T,
    )
