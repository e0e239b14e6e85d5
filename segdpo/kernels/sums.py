"""The sums that scores are linear in, all in one autograd Function over the logits."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from segdpo.kernels.in_place import check_not_spent, check_own_memory
from segdpo.kernels.pair_index import PairIndex
from segdpo.kernels.pixels import ImageIndex, Logits, score_dtype
from segdpo.kernels.planes import Planes, plane_sums, write_plane_slopes
from segdpo.kernels.sparse import add_steps, places_in, poison, read_steps, sum_rows


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
