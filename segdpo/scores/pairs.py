"""Pairs of masks under one network's logits: from a user's tensors to PairScores."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from segdpo.checks import check_choice, check_finite
from segdpo.kernels.dispatch import BACKENDS, choose_backend, scores_by
from segdpo.kernels.fused import fused_chosen
from segdpo.kernels.pair_index import PairIndex
from segdpo.kernels.pixels import Measure, whole_score
from segdpo.measures import Masks, RegionChoice
from segdpo.scores.pair_scores import PairScores

MeasureChoice = tuple[str, RegionChoice, str]
"""Quantity, region and reduction."""


def score_pairs(
    logits: Tensor,
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
    backend: str = "auto",
) -> PairScores:
    """Score the chosen and the rejected masks of pairs under one network's logits.

    Args:
        logits: [images, 1, *spatial] (sigmoid) or [images, classes, *spatial] (softmax), any floating dtype.
        chosen: class ids [pairs, *spatial], 255 = ignore; a pixel ignored in either mask is ignored in both.
        rejected: like `chosen`.
        valid: bool, [images, *spatial] or [pairs, *spatial]; False = do not judge this pixel.
        image_index: [pairs], the image of each pair, so that many pairs share one forward; left out: one pair an image.
        quantity: "log_likelihood" (log p of the mask's class) or "log_odds" (log p/(1−p)).
        region: "image", "disagreement", "boundary", a function of (chosen, rejected), or a bool mask like `valid`.
        reduction: "sum", "mean", or "class_balanced" (each class of the chosen mask weighs the same).
        index: where the masks differ, from `pair_index` of the same masks and `valid`; left out: found on the spot.
        check: look at the values (classes in range, finite logits, something valid). Left out: on a CPU yes, on
            other devices no, since looking waits for the device. With an index, masks and logits have been looked at
            as far as margins are made of them only.
        backend: "auto" (the fastest), "sparse", "compiled", "triton", or "reference": every pixel by log-softmax and
            gather, the truth to test against.

    >>> square, diagonal = torch.ones(1, 2, 2).byte(), torch.eye(2).byte()[None]
    >>> scores = score_pairs(torch.zeros(1, 1, 2, 2), chosen=square, rejected=diagonal)
    >>> scores.margin, scores.chosen
    (tensor([0.]), tensor([-0.6931]))
    """
    masks = Masks(
        logits,
        {"chosen": chosen, "rejected": rejected},
        valid=valid,
        image_index=image_index,
        index=index,
        check=check,
    )
    return scores_of(logits, masks, [(quantity, region, reduction)], [False], backend=backend)[0]


def scores_of(
    logits: Tensor,
    masks: Masks,
    choices: Sequence[MeasureChoice],
    wants_chosen: Sequence[bool],
    *,
    backend: str = "auto",
    in_place: bool = False,
) -> list[PairScores]:
    """Score the pairs under each choice; a chosen score that is wanted comes along, another when it is asked for."""
    check_choice("backend", backend, ("auto", *BACKENDS))
    if backend == "auto":
        meets = masks.image_index is not None
        backend = choose_backend(logits, wants_chosen=any(wants_chosen), index=masks.has_index, meets=meets)
    sparse = backend == "sparse"
    measures = [masks.measure(*choice, sparse=sparse) for choice in choices]
    if any(wants_chosen):
        masks.check_chosen()
    margins, chosen = scores_by(
        backend,
        logits.flatten(2),
        # Whole masks are made legal, which passes over them, only for who reads them.
        masks.flat(0) if sparse and not any(wants_chosen) else masks.label(0),
        masks.flat(1) if sparse else masks.label(1),
        measures,
        wants_chosen,
        index=masks.index if sparse else None,
        in_place=in_place,
    )
    if masks.looks:
        check_finite([*margins, *(score for score in chosen if score is not None)], logits)
    return [
        PairScores(chosen=_later(backend, logits, masks, measure) if whole is None else whole, margin=margin)
        for measure, margin, whole in zip(measures, margins, chosen, strict=True)
    ]


def unless_written(logits: Tensor, compute: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """Return `compute`, which fails in words if the logits have been written to since."""
    if torch.compiler.is_compiling() or logits.is_inference():
        return compute
    version = logits._version

    def chosen() -> Tensor:
        if logits._version != version:
            raise RuntimeError(
                "Expected the logits that were scored but they have been written to since (in_place=True, or an "
                "in-place operation); ask for .chosen before that."
            )
        return compute()

    return chosen


def _later(backend: str, logits: Tensor, masks: Masks, measure: Measure) -> Callable[[], Tensor]:
    def chosen() -> Tensor:
        masks.check_chosen()
        return (whole_score if backend == "reference" else fused_chosen)(logits.flatten(2), masks.label(0), measure)

    return unless_written(logits, chosen)
