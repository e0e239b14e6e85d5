"""All scores of a loss on a GPU: margins and chosen scores in one pass, their gradient in another.

The same numbers as `fused_scores`. Nothing here waits for the device: how many programs run follows from the shapes.
Sums are made tile by tile and then in fp64 in a fixed order, and every logit's gradient is written by one program, so
that two runs give the same bits. Importing this file does not import triton.
"""

import os
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from torch.torch_version import TorchVersion

from segdpo.kernels.in_place import check_not_spent, check_own_memory
from segdpo.kernels.pixels import Labels, Logits, Measure, Scores
from segdpo.kernels.triton_plan import Plan, make_plan


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
