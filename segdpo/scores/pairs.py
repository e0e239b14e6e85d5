"""Scores of pairs of masks: `score_pairs`, and `score_pairs_by` for several scores in one pass."""

from collections.abc import Callable, Collection, Iterable, Sequence

import torch
from torch import Tensor

from segdpo.checks import check_choice, check_finite
from segdpo.kernels import BACKENDS, Backend, Measure, PairIndex, choose_backend, chosen_score, scores_by, whole_score
from segdpo.scores.masks import Pairs, Prepared
from segdpo.scores.outputs import ModelOutput, logits_in
from segdpo.scores.regions import RegionFunction
from segdpo.scores.score import PairScores, Quantity, Reduction, RegionChoice, RegionName, Score


def score_pairs(
    logits: ModelOutput,
    chosen: Tensor,
    rejected: Tensor,
    *,
    valid: Tensor | None = None,
    pair_valid: Tensor | None = None,
    image_index: Tensor | None = None,
    quantity: Quantity = "log_likelihood",
    region: RegionChoice = "image",
    pair_region: Tensor | None = None,
    reduction: Reduction = "mean",
    ignore: int | None = None,
    index: PairIndex | None = None,
    check: bool | None = None,
    backend: Backend = "auto",
) -> PairScores:
    """Score the chosen and the rejected masks of pairs: s = Σ w · q over the pixels of a region.

    Both masks of a pair share one set of pixels and the weights of the chosen mask, so that log-sum-exp cancels in the
    margin: s⁺ − s⁻ = Σ w (z[y⁺] − z[y⁻]) over the pixels where the masks differ.

    Args:
        logits: [images, 1, *spatial] (sigmoid) or [images, classes, *spatial] (softmax), any floating dtype; or what a
            model returns: an object with `.logits`, or a dict with "logits" or "out".
        chosen: class ids [pairs, *spatial], 255 = ignore; a pixel ignored in either mask is ignored in both.
        rejected: like `chosen`.
        valid: bool [images, *spatial]; False = the pixel does not count, in any pair of the image.
        pair_valid: bool [pairs, *spatial]; False = the pixel does not count in this pair.
        image_index: [pairs], the image of each pair, so that several pairs share one forward pass; None: pair i belongs
            to image i.
        quantity: q, "log_likelihood" (log p of the mask's class) or "log_odds" (log p/(1−p)).
        region: "image", "disagreement", "boundary", a function of (chosen, rejected), or a bool mask
            [images, *spatial].
        pair_region: bool [pairs, *spatial], a region for each pair.
        reduction: the weights w, "sum", "mean", or "class_balanced" (each class of the chosen mask weighs the same).
        ignore: the mask value of pixels that do not count; None: 255, and an error for models that have a class 255,
            whose masks are wider than uint8: pass -1 or any value that is no class.
        index: where the masks differ, from `pair_index` of the same arguments; None: computed if needed.
        check: read the values: raise an error for illegal classes and logits that are not finite; warn of pairs
            without a valid pixel, and of masks of 0 and 255 alone. None: on a CPU yes, on other devices no, since
            reading waits for the device. With an index, only what the margins depend on is checked.
        backend: "auto" (the fastest), "sparse", "triton", or "reference": log-softmax and gather at every pixel, which
            the others are tested against.

    Returns:
        PairScores with `chosen`, `rejected` and `margin` [pairs]. `chosen` is computed when it is first read.

    >>> square, diagonal = torch.ones(1, 2, 2).byte(), torch.eye(2).byte()[None]
    >>> scores = score_pairs(torch.zeros(1, 1, 2, 2), chosen=square, rejected=diagonal)
    >>> scores.margin, scores.chosen
    (tensor([0.]), tensor([-0.6931]))
    """
    logits = logits_in(logits)
    region_name, region_mask = given_region(region, pair_region)
    pairs = Pairs(chosen, rejected, valid, image_index, region_mask, index, pair_valid, pair_region, ignore)
    score = Score(quantity, region_name, reduction)
    return scores_of([score], logits, pairs.prepare(logits, check), [False], backend)[0]


def given_region(region: RegionChoice, pair_region: Tensor | None) -> tuple[RegionName | RegionFunction, Tensor | None]:
    """Return the region of a Score, and the mask of each image that was given as a region."""
    if isinstance(region, Tensor):
        return "given", region
    if pair_region is None:
        return region, None
    if region not in ("image", "given"):
        raise ValueError(
            f"Expected either region or pair_region but got region={region!r} and pair_region; pass "
            "pair_region=pair_region & mask for the pixels of both."
        )
    return "given", None


def score_pairs_by(
    scores: Iterable[Score],
    logits: Tensor,
    pairs: Pairs,
    *,
    wants_chosen: Collection[Score] = (),
    check: bool | None = None,
    backend: Backend = "auto",
) -> dict[Score, PairScores]:
    """Score pairs under several Scores: one pass over the logits, and one over their gradient.

    Args:
        scores: what to measure.
        logits: [images, channels, *spatial], as for `score_pairs`.
        pairs: the masks.
        wants_chosen: the Scores whose s⁺ is needed, computed in the same pass. For others s⁺ is computed when read.
        check: as for `score_pairs`.
        backend: as for `score_pairs`.
    """
    scores = list(scores)
    wants = [score in wants_chosen for score in scores]
    return dict(zip(scores, scores_of(scores, logits, pairs.prepare(logits, check), wants, backend), strict=True))


def scores_of(
    scores: Sequence[Score], logits: Tensor, masks: Prepared, wants_chosen: Sequence[bool], backend: Backend
) -> list[PairScores]:
    """Return the scores of prepared pairs, with the chosen scores that are wanted computed in the same pass."""
    check_choice("backend", backend, ("auto", *BACKENDS))
    if backend == "auto":
        overlaps = masks.image_index is not None
        backend = choose_backend(logits, wants_chosen=any(wants_chosen), index=masks.has_index, overlaps=overlaps)
    sparse = backend == "sparse"
    measures = [masks.measure(score, sparse=sparse) for score in scores]
    if any(wants_chosen):
        masks.check_chosen()
    margins, chosen = scores_by(
        backend,
        logits.flatten(2),
        # Making labels legal passes over whole masks, so it is done only for kernels that read them.
        masks.flat(0) if sparse and not any(wants_chosen) else masks.label(0),
        masks.flat(1) if sparse else masks.label(1),
        measures,
        wants_chosen,
        index=masks.index if sparse else None,
    )
    if masks.checks:
        check_finite([*margins, *(score for score in chosen if score is not None)], logits)
    return [
        PairScores(
            chosen=_chosen_later(backend, logits, masks, measure) if whole is None else whole,
            margin=margin,
            scored=masks.scored,
        )
        for measure, margin, whole in zip(measures, margins, chosen, strict=True)
    ]


def unless_changed(logits: Tensor, compute: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """Return `compute`, with an error if the logits have been changed in place since."""
    if torch.compiler.is_compiling() or logits.is_inference():
        return compute
    version = logits._version

    def chosen() -> Tensor:
        if logits._version != version:
            raise RuntimeError(
                "Expected the logits that were scored but an in-place operation has changed them; read .chosen before."
            )
        return compute()

    return chosen


def _chosen_later(backend: str, logits: Tensor, masks: Prepared, measure: Measure) -> Callable[[], Tensor]:
    def chosen() -> Tensor:
        masks.check_chosen()
        return (whole_score if backend == "reference" else chosen_score)(logits.flatten(2), masks.label(0), measure)

    return unless_changed(logits, chosen)
