"""Scores on a GPU by Triton. Importing this module does not import triton."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
from jaxtyping import Float, Integer
from torch import Tensor
from torch.torch_version import TorchVersion

from segdpo.kernels.fused import check_not_spent, check_own_memory
from segdpo.kernels.pixels import EvenMeasure, ImageIndex, Labels, Logits, Measure, Scores, score_dtype

Table = Float[Tensor, "scores pairs classes_or_1"]


@dataclass(frozen=True, eq=False)
class Plan:
    """One entry a score in each tuple, and a bit a score in each int.

    Attributes:
        insides: which pixels count.
        weigh_by: the labels by which the tables are read.
        margin_table: what a step of a pixel's logits weighs in the margin, by class, or one weight for all.
        chosen_table: what a pixel's quantity weighs in the chosen score.
        image_index: the image of each pair, None for one pair an image.
        order: the pairs, those of one image side by side.
        starts: where each image's pairs begin in `order`.
        wanted: of which scores the chosen one is wanted.
        odds: which scores count log-odds.
        even: which scores count every pixel where the masks differ, and no other: their `insides` are not read.
    """

    insides: tuple[Labels, ...]
    weigh_by: tuple[Labels, ...]
    margin_table: Table
    chosen_table: Table
    image_index: ImageIndex | None
    order: Integer[Tensor, "places"]
    starts: Integer[Tensor, "bounds"]
    wanted: int
    odds: int
    even: int


def make_plan(logits: Logits, chosen: Labels, measures: Sequence[Measure], wants_chosen: Sequence[bool]) -> Plan:
    """Bring the measures, all of one set of pairs, to what the kernels read."""
    columns = max(measure.weights.shape[1] for measure in measures)
    weights = [measure.weights.expand(-1, columns).to(score_dtype(logits)) for measure in measures]
    odds = [measure.quantity == "log_odds" for measure in measures]
    # Log-odds are ±z, and swapping the class moves them by 2z.
    steps = [table * 2 if odd else table for table, odd in zip(weights, odds, strict=True)]
    # The margin of such a score needs no mask of pixels, and to ask for it would make one.
    even = [isinstance(m, EvenMeasure) and not wants for m, wants in zip(measures, wants_chosen, strict=True)]
    masks = [
        (chosen, chosen) if skip else (measure.inside.contiguous().view(torch.uint8), measure.weigh_by.contiguous())
        for measure, skip in zip(measures, even, strict=True)
    ]
    image_index = measures[0].image_index
    order, starts = _by_image(image_index, len(logits), logits.device)
    return Plan(
        insides=tuple(inside for inside, _ in masks),
        weigh_by=tuple(labels for _, labels in masks),
        margin_table=torch.stack(steps),
        chosen_table=torch.stack(weights),
        image_index=None if image_index is None else image_index.contiguous(),
        order=order,
        starts=starts,
        wanted=_bits(wants_chosen),
        odds=_bits(odds),
        even=_bits(even),
    )


def _by_image(image_index: ImageIndex | None, images: int, device: torch.device) -> tuple[Tensor, Tensor]:
    if image_index is None:
        nothing = torch.empty(0, dtype=torch.int64, device=device)
        return nothing, nothing
    of_image, order = image_index.sort(stable=True)
    bounds = torch.arange(images + 1, device=device, dtype=of_image.dtype)
    return order, torch.searchsorted(of_image, bounds)


def _bits(flags: Sequence[bool]) -> int:
    return sum(int(flag) << place for place, flag in enumerate(flags))


def is_usable(logits: Tensor) -> bool:
    """Whether `triton_scores` can take these logits: not empty, and on a GPU that Triton compiles for."""
    if not _has_triton() or logits.numel() == 0:
        return False
    if logits.device.type != "cuda":
        # Triton's own interpreter runs kernels on a CPU, slowly: for tests.
        return logits.device.type == "cpu" and os.environ.get("TRITON_INTERPRET") == "1"
    # Triton's compiler supports NVIDIA from capability 8 on; AMD counts otherwise.
    return torch.version.hip is not None or torch.cuda.get_device_capability(logits.device) >= (8, 0)


@cache
def _has_triton() -> bool:
    # The kernels take tuples of tensors, as Triton does from 3.3 on, the release that came with PyTorch 2.7.
    return find_spec("triton") is not None and TorchVersion(torch.__version__) >= "2.7"


def triton_scores(
    logits: Logits,
    chosen: Labels,
    rejected: Labels,
    measures: Sequence[Measure],
    wants_chosen: Sequence[bool],
    *,
    index: object = None,
    in_place: bool = False,
) -> Scores:
    """Return the margin of every measure, and the chosen score of those that want it.

    The masks hold a class everywhere, and the same one where a pixel is ignored. They are read whole; `index` is taken
    for the sake of one signature. With `in_place` the backward writes the gradient over the logits, which are lost.
    """
    if in_place:
        check_own_memory(logits)
    if not is_usable(logits):
        raise ValueError(
            f'Expected logits on a GPU of capability 8 or newer, and Triton 3.3 or newer, for backend="triton", but '
            f"got {tuple(logits.shape)} on {logits.device}; leave backend out, and one that works here is chosen."
        )
    chosen, rejected = chosen.contiguous(), rejected.contiguous()
    plan = make_plan(logits, chosen, measures, wants_chosen)
    values = _TritonScores.apply(logits, chosen, rejected, plan, in_place)
    margins, *whole = (kind.unbind(0) for kind in values.unbind(0))
    return list(margins), [whole[0][score] if wants else None for score, wants in enumerate(wants_chosen)]


class _TritonScores(torch.autograd.Function):
    """Saves the masks, and where a chosen score is wanted the logits, with the log-sum-exp of many classes."""

    @staticmethod
    def forward(ctx: Any, logits: Logits, chosen: Labels, rejected: Labels, plan: Plan, in_place: bool) -> Tensor:
        from segdpo.kernels.triton_launch import scores_of

        values, log_total = scores_of(logits, chosen, rejected, plan, keep=ctx.needs_input_grad[0])
        kept = logits if plan.wanted or in_place else None
        # The plan's masks as well: whoever writes to one before the backward is told so by autograd.
        ctx.save_for_backward(kept, log_total, chosen, rejected, *plan.insides, *plan.weigh_by)
        ctx.blueprint = torch.empty_like(logits, device="meta")
        ctx.plan, ctx.in_place, ctx.spent = plan, in_place, False
        return values

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        from segdpo.kernels.triton_launch import gradient_of

        check_not_spent(ctx.spent)
        # once_differentiable would let a constant `grad` through, and the second derivative be taken for 0.
        if torch.is_grad_enabled():
            raise RuntimeError(
                "Expected one derivative of a score but a second was asked for (create_graph=True); score with "
                'backend="reference", which PyTorch can differentiate twice.'
            )
        logits, log_total, chosen, rejected, *_ = ctx.saved_tensors
        out = logits.detach() if ctx.in_place else torch.empty_like(ctx.blueprint, device=grad.device)
        gradient_of(out if logits is None else logits, log_total, chosen, rejected, ctx.plan, grad, out)
        if ctx.in_place:
            ctx.spent = True
            # Whoever else saved these logits for a backward of their own is told so, too.
            torch.autograd.graph.increment_version(out)
        return out, None, None, None, None
