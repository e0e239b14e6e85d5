"""All scores of a loss in one pass over the logits, and their gradient in one tensor."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from segdpo.kernels.index import PairIndex, index_of
from segdpo.kernels.pixels import (
    EvenMeasure,
    ImageIndex,
    Labels,
    Logits,
    Measure,
    PerPair,
    Scores,
    log_sum_exp_cancels,
    score_dtype,
    step_factor,
    whole_score,
)
from segdpo.kernels.planes import Planes, plane_sums, write_plane_slopes
from segdpo.kernels.sparse import add_steps, entry_weights, places_in, poison, read_steps, sum_rows


def check_own_memory(logits: Tensor) -> None:
    """Refuse logits of which several are one number in memory."""
    if any(step == 0 and size > 1 for step, size in zip(logits.stride(), logits.shape, strict=True)):
        raise ValueError(
            "Expected logits with memory of their own for in_place=True but got an expanded tensor of strides "
            f"{logits.stride()}; leave in_place out, or pass logits.contiguous()."
        )


def check_not_spent(spent: bool) -> None:
    """Refuse a second backward, whose logits the first has overwritten."""
    if spent:
        raise RuntimeError(
            "Expected one backward through scores with in_place=True, but this is the second: the first has "
            "written the gradient over the logits; leave in_place out to go backward twice."
        )


@dataclass(frozen=True, eq=False)
class Steps:
    """Pixels where masks differ, and the kinds of weights they count with in one sum or another; None: all count 1.

    `image_index` says which image each row of the index belongs to.
    """

    index: PairIndex
    image_index: ImageIndex | None
    weights: Sequence[Float[Tensor, "entries"] | None]


def sums_of(
    logits: Logits, steps: Steps | None, planes: Planes | None, *, in_place: bool = False
) -> tuple[Float[Tensor, "kinds rows"] | None, Float[Tensor, "measures planes"] | None]:
    """Return Σ weight · (z[plus] − z[minus]) over each row of the index, and Σ weight · quantity of each plane.

    In fp64 where the device has it. The backward writes one gradient: with `in_place` over the logits, else anew.
    """
    if in_place:
        check_own_memory(logits)
    sums: tuple[Tensor | None, Tensor | None] = _Sums.apply(logits, steps, planes, in_place)
    return sums


class _Sums(torch.autograd.Function):
    """Keeps where masks differ and, only if whole masks are scored or may be overwritten, the logits."""

    @staticmethod
    def forward(
        ctx: Any, logits: Logits, steps: Steps | None, planes: Planes | None, in_place: bool
    ) -> tuple[Tensor | None, Tensor | None]:
        ctx.save_for_backward(logits if planes is not None or in_place else None)
        ctx.blueprint = torch.empty_like(logits, device="meta")  # shape, dtype and strides without the memory
        ctx.steps, ctx.planes, ctx.in_place, ctx.device = steps, planes, in_place, logits.device
        ctx.spent = False
        sums = ctx.places = None
        if steps is not None:
            ctx.places = places_in(logits, steps.index, steps.image_index)
            values = read_steps(logits, ctx.places).add_(poison(steps.index, logits.shape[1]))
            rows = [sum_rows(values if weight is None else values * weight, steps.index) for weight in steps.weights]
            sums = torch.stack(rows)
        return sums, None if planes is None else plane_sums(logits, planes)

    @staticmethod
    def backward(ctx: Any, grad_sums: Tensor | None, grad_whole: Tensor | None) -> tuple[Tensor | None, ...]:
        check_not_spent(ctx.spent)
        ctx.spent, create_graph = ctx.in_place, torch.is_grad_enabled()
        with torch.no_grad():
            grad = _gradient(ctx, grad_sums, grad_whole)
        if create_graph:
            grad = _Once.apply(grad, grad_sums, grad_whole)
        return grad, None, None, None


def _gradient(ctx: Any, grad_sums: Tensor | None, grad_whole: Tensor | None) -> Tensor:
    (logits,) = ctx.saved_tensors
    steps: Steps | None = ctx.steps
    # Where pairs, or a margin and a whole mask, meet in one pixel, half precision would drop the smaller terms.
    meets = ctx.planes is not None or (steps is not None and steps.image_index is not None)
    dtype = score_dtype(ctx.blueprint) if meets else ctx.blueprint.dtype
    overwrites = ctx.in_place and dtype == ctx.blueprint.dtype
    grad = logits.detach() if overwrites else torch.empty_like(ctx.blueprint, device=ctx.device, dtype=dtype)
    if grad_whole is None:
        grad.zero_()
    else:
        write_plane_slopes(grad, logits, ctx.planes, grad_whole.to(score_dtype(grad)))
    if steps is not None and grad_sums is not None:
        same = grad.stride() == ctx.places.stride
        places = ctx.places if same else places_in(grad, steps.index, steps.image_index)
        add_steps(grad, _slope(steps, grad_sums.to(score_dtype(grad))), places)
    return logits.detach().copy_(grad) if ctx.in_place and not overwrites else grad.to(ctx.blueprint.dtype)


def _slope(steps: Steps, grad: Float[Tensor, "kinds rows"]) -> Float[Tensor, "entries"]:
    """Return how much each pixel's step counts in the end."""
    slopes = [
        steps.index.spread(of_row) if weight is None else steps.index.spread(of_row).mul_(weight)
        for weight, of_row in zip(steps.weights, grad, strict=True)
    ]
    return slopes[0] if len(slopes) == 1 else torch.stack(slopes).sum(0)


class _Once(torch.autograd.Function):
    """A gradient that cannot be differentiated again, and says so."""

    @staticmethod
    def forward(ctx: Any, grad: Tensor, *_: Tensor | None) -> Tensor:
        return grad.view_as(grad)

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> tuple[Tensor | None, ...]:
        raise RuntimeError(
            "Expected one derivative of a score but a second was asked for (create_graph=True, then backward through "
            'the gradient); score with backend="reference", which PyTorch can differentiate twice.'
        )


def fused_scores(
    logits: Logits,
    chosen: Labels,
    rejected: Labels,
    measures: Sequence[Measure],
    wants_chosen: Sequence[bool],
    *,
    index: PairIndex | None = None,
    in_place: bool = False,
) -> Scores:
    """Return the margin of every measure, and the chosen score of those that want it.

    For log-likelihood, and for log-odds of one channel, where log-sum-exp cancels. Whole masks are read only if a
    chosen score is wanted; they must then hold legal classes everywhere. With `in_place` the backward writes the
    gradient over the logits, whose values are lost.
    """
    if index is None:
        index = index_of(chosen, rejected, torch.ones_like(chosen, dtype=torch.bool))
    weights: list[Tensor | None] = [
        entry_weights(measure, index) for measure in measures if not isinstance(measure, EvenMeasure)
    ]
    if len(weights) < len(measures):
        weights.append(None)  # even measures share one sum, and weigh it afterwards
    wanted = [measure for measure, wants in zip(measures, wants_chosen, strict=True) if wants]
    # Chunks are for a CPU's cache; elsewhere PyTorch's own kernels do better.
    planes = Planes(chosen, wanted) if wanted and logits.device.type == "cpu" else None
    sums, whole = sums_of(logits, Steps(index, measures[0].image_index, weights), planes, in_place=in_place)
    if whole is None:
        scores = iter([whole_score(logits, chosen, measure) for measure in wanted])
    else:
        scores = iter(whole.to(score_dtype(logits)).unbind(0))
    assert sums is not None
    margins = [margin.to(score_dtype(logits)) for margin in _margins(sums, measures)]
    return margins, [next(scores) if wants else None for wants in wants_chosen]


def fused_chosen(logits: Logits, chosen: Labels, measure: Measure) -> PerPair:
    """Return the chosen score alone."""
    if logits.device.type != "cpu" or not log_sum_exp_cancels(measure.quantity, logits.shape[1]):
        return whole_score(logits, chosen, measure)
    _, whole = sums_of(logits, None, Planes(chosen, [measure]))
    assert whole is not None
    return whole[0].to(score_dtype(logits))


def _margins(sums: Tensor, measures: Sequence[Measure]) -> list[Tensor]:
    uneven = iter(sums.unbind(0))
    found = []
    for measure in measures:
        total = sums[-1] * measure.weights[:, 0] if isinstance(measure, EvenMeasure) else next(uneven)
        found.append(total * step_factor(measure.quantity))
    return found
