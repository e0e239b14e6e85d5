"""The backend "triton": scores on a GPU. Importing this module does not import triton."""

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

from segdpo.kernels.pixels import EvenMeasure, ImageIndex, Labels, Logits, Measure, Scores, score_dtype

Table = Float[Tensor, "scores pairs classes_or_1"]


@dataclass(frozen=True, eq=False)
class Plan:
    """The measures in the form that the kernels read: tuples have one entry per score, ints one bit per score.

    Attributes:
        insides: the pixels that count.
        weigh_by: the labels that select a pixel's entry of the tables.
        margin_table: the weight of z[y⁺] − z[y⁻] in the margin, by class, or one weight for all.
        chosen_table: the weight of a pixel's quantity in the chosen score.
        image_index: the image of each pair; None: pair i belongs to image i.
        order: the pairs, sorted by image.
        starts: where each image's pairs begin in `order`.
        wanted: the scores of which the chosen one is wanted.
        odds: the scores in log-odds.
        even: the scores that count every pixel where the masks differ, and no other; their `insides` are not read.
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
    """Return the plan of measures of one set of pairs."""
    columns = max(measure.weights.shape[1] for measure in measures)
    weights = [measure.weights.expand(-1, columns).to(score_dtype(logits)) for measure in measures]
    odds = [measure.quantity == "log_odds" for measure in measures]
    # Log-odds are ±z, and swapping the class changes them by 2z.
    margin_weights = [table * 2 if odd else table for table, odd in zip(weights, odds, strict=True)]
    # The margin of an even measure needs no `inside`, and reading it would compute it.
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
        margin_table=torch.stack(margin_weights),
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
    """Return whether `triton_scores` accepts these logits: not empty, and on a GPU that Triton compiles for."""
    if not _has_triton() or logits.numel() == 0:
        return False
    if logits.device.type != "cuda":
        # For tests: Triton's interpreter runs kernels on a CPU, slowly.
        return logits.device.type == "cpu" and os.environ.get("TRITON_INTERPRET") == "1"
    # Triton supports NVIDIA GPUs from capability 8 on; AMD numbers its GPUs differently.
    return torch.version.hip is not None or torch.cuda.get_device_capability(logits.device) >= (8, 0)


@cache
def _has_triton() -> bool:
    # The kernels take tuples of tensors, which needs Triton 3.3; PyTorch 2.7 came with it.
    return find_spec("triton") is not None and TorchVersion(torch.__version__) >= "2.7"


def triton_scores(
    logits: Logits,
    chosen: Labels,
    rejected: Labels,
    measures: Sequence[Measure],
    wants_chosen: Sequence[bool],
    *,
    index: object = None,
) -> Scores:
    """Return the margin of every measure, and the chosen score of those that want it.

    The masks must hold a class everywhere, and the same class at pixels that are ignored. They are read whole; `index`
    is not used.
    """
    if not is_usable(logits):
        raise ValueError(
            f'Expected logits on a GPU of capability 8 or newer, and Triton 3.3 or newer, for backend="triton", but '
            f"got {tuple(logits.shape)} on {logits.device}; omit backend to use one that works here."
        )
    chosen, rejected = chosen.contiguous(), rejected.contiguous()
    plan = make_plan(logits, chosen, measures, wants_chosen)
    values = _TritonScores.apply(logits, chosen, rejected, plan)
    margins, *whole = (kind.unbind(0) for kind in values.unbind(0))
    return list(margins), [whole[0][score] if wants else None for score, wants in enumerate(wants_chosen)]


class _TritonScores(torch.autograd.Function):
    """Saves the masks; if a chosen score is wanted also the logits, and for many classes their log-sum-exp."""

    @staticmethod
    def forward(ctx: Any, logits: Logits, chosen: Labels, rejected: Labels, plan: Plan) -> Tensor:
        from segdpo.kernels.triton_launch import scores_of

        values, log_total = scores_of(logits, chosen, rejected, plan, keep=ctx.needs_input_grad[0])
        kept = logits if plan.wanted else None
        # The plan's masks as well, so that autograd reports writes to them before the backward.
        ctx.save_for_backward(kept, log_total, chosen, rejected, *plan.insides, *plan.weigh_by)
        ctx.blueprint = torch.empty_like(logits, device="meta")
        ctx.plan = plan
        return values

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        from segdpo.kernels.triton_launch import gradient_of

        # once_differentiable would accept a constant `grad` and return 0 as the second derivative.
        if torch.is_grad_enabled():
            raise RuntimeError(
                "Expected one derivative of a score but a second was requested (create_graph=True); score with "
                'backend="reference", which PyTorch can differentiate twice.'
            )
        logits, log_total, chosen, rejected, *_ = ctx.saved_tensors
        out = torch.empty_like(ctx.blueprint, device=grad.device)
        gradient_of(out if logits is None else logits, log_total, chosen, rejected, ctx.plan, grad, out)
        return out, None, None, None
