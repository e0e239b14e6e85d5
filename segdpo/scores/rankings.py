"""Rankings of K masks under one network's logits."""

import torch
from torch import Tensor

from segdpo.kernels.dispatch import choose_backend, scores_by
from segdpo.kernels.fused import fused_chosen
from segdpo.measures import Masks, RegionChoice
from segdpo.scores.pair_scores import PairScores


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
    flat, labels = logits.flatten(2), masks.labels
    # Relative to the worst mask: K − 1 exact margins say all that a ranking loss can see.
    backend = choose_backend(logits)
    margins = [scores_by(backend, flat, mask, labels[-1], [measure], [False])[0][0] for mask in labels[:-1]]
    return PairScores(
        chosen=lambda: fused_chosen(flat, labels[0], measure),
        margin=margins[0],
        ranked=torch.stack([*margins, torch.zeros_like(margins[0])], dim=1),
    )
