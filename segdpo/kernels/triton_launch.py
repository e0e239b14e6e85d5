"""Launch the Triton kernels: the choice of the kernel, of the number of tiles, and of their size.

Tile sizes are fixed, not autotuned: another size would add in another order and change the last bits.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

from segdpo.kernels.pixels import Labels, Logits, score_dtype
from segdpo.kernels.triton_kernels import chosen_forward, margin_forward, sigmoid_gradient, softmax_gradient
from segdpo.kernels.triton_scores import Plan

Values = Float[Tensor, "kinds scores pairs"]
LogTotal = Float[Tensor, "images pixels"]


@dataclass(frozen=True)
class Tiles:
    """Sizes of tiles; `python scripts/gpu.py --tune` measures others.

    Attributes:
        flat: pixels of a tile of margins, and of everything for one channel; 1024 are 8 per thread (128 threads), eight
            bytes of a uint8 mask in one load.
        flat_warps: groups of 32 threads that compute such a tile.
        bytes: of one channel of a tile that is read `few` channels at a time; 2048 are 16 per thread.
        few: channels at a time (NCHW). They are in the registers of one thread and are summed without communication; 4
            loads in flight hide the latency of the memory.
        many: channels at a time in a gradient that reads the masks of many pairs again for each group of channels.
        last: channels at a time in the memory format channels_last, where those of a pixel are contiguous.
        values: of a tile that is read more than `few` channels at a time; with 4096, the addresses alone would fill the
            registers.
        warps: groups of 32 threads that compute a tile of several channels.
    """

    flat: int = 1024
    flat_warps: int = 4
    bytes: int = 2048
    few: int = 4
    many: int = 16
    last: int = 32
    values: int = 2048
    warps: int = 4


TILES = Tiles()
# From this number of classes on, a stored fp32 log-sum-exp takes at most a sixteenth of fp32 logits. With fewer classes
# a tile is still in the cache when the gradient reads it a second time, and recomputing it takes no memory.
KEPT_FROM = 16


def scores_of(
    logits: Logits, chosen: Labels, rejected: Labels, plan: Plan, *, keep: bool
) -> tuple[Values, LogTotal | None]:
    """Return the margins, with the chosen scores as a second kind if any is wanted, and the log-sum-exp if stored."""
    images, channels, pixels = logits.shape
    block, group = _tile(logits, TILES.few) if plan.wanted else (TILES.flat, 1)
    kinds, tiles = (2 if plan.wanted else 1), triton.cdiv(pixels, block)
    # No program visits a pair whose image does not exist, so its score stays NaN.
    partial = logits.new_full((kinds, len(plan.insides), len(chosen), tiles), float("nan"), dtype=score_dtype(logits))
    stored = keep and bool(plan.wanted) and channels >= KEPT_FROM
    log_total = partial.new_empty((images, pixels)) if stored else None
    masks = (chosen, rejected, plan.insides, plan.weigh_by)
    shapes = (len(chosen), channels, pixels, *logits.stride())
    fixed = _fixed(logits, plan, block, TILES.warps if plan.wanted else TILES.flat_warps)
    with torch.cuda.device_of(logits):
        if plan.wanted:
            tables = (plan.margin_table, plan.chosen_table, plan.order, plan.starts)
            chosen_forward[(images * tiles,)](
                partial,
                partial if log_total is None else log_total,
                logits,
                *masks,
                *tables,
                *shapes,
                **fixed,
                wanted=plan.wanted,
                odds=plan.odds,
                binary=channels == 1,
                stored=stored,
                group=group,
            )
        else:
            index = plan.starts if plan.image_index is None else plan.image_index
            margin_forward[(len(chosen) * tiles,)](
                partial, logits, *masks, plan.margin_table, index, images, *shapes, **fixed, binary=channels == 1
            )
    return partial.sum(-1, dtype=torch.float64).to(partial.dtype), log_total


def gradient_of(
    logits: Logits,
    log_total: LogTotal | None,
    chosen: Labels,
    rejected: Labels,
    plan: Plan,
    grad: Values,
    out: Logits,
) -> None:
    """Write the gradient with respect to the logits into `out`, given the gradient `grad` of the scores."""
    images, channels, pixels = logits.shape
    block, group = _tile(logits, TILES.few if plan.image_index is None else TILES.many)
    margin_slopes = grad[0][..., None] * plan.margin_table
    chosen_slopes = grad[1][..., None] * plan.chosen_table if plan.wanted else margin_slopes
    masks = (chosen, rejected, plan.insides, plan.weigh_by)
    tables = (margin_slopes, chosen_slopes, plan.order, plan.starts)
    with torch.cuda.device_of(logits):
        if channels == 1:
            grid = (images * triton.cdiv(pixels, TILES.flat),)
            strides = (logits.stride(0), logits.stride(2), out.stride(0), out.stride(2))
            sigmoid_gradient[grid](
                out,
                logits,
                *masks,
                *tables,
                len(chosen),
                pixels,
                *strides,
                **_fixed(logits, plan, TILES.flat, TILES.flat_warps),
                wanted=plan.wanted,
                odds=plan.odds,
            )
            return
        softmax_gradient[(images * triton.cdiv(pixels, block),)](
            out,
            out if log_total is None else log_total,
            logits,
            *masks,
            *tables,
            len(chosen),
            channels,
            pixels,
            *logits.stride(),
            *out.stride(),
            **_fixed(logits, plan, block, TILES.warps),
            wanted=plan.wanted,
            stored=log_total is not None,
            group=group,
        )


def _tile(logits: Logits, most: int) -> tuple[int, int]:
    """Return the number of pixels of a tile, and the number of channels read at a time: `most`, or TILES.last."""
    channels_last = logits.stride(1) < logits.stride(2)
    group = min(triton.next_power_of_2(logits.shape[1]), TILES.last if channels_last else most)
    return (TILES.bytes // logits.element_size() if group <= TILES.few else TILES.values // group), group


def _fixed(logits: Logits, plan: Plan, block: int, warps: int) -> dict[str, object]:
    return {
        "even": plan.even,
        "indexed": plan.image_index is not None,
        "columns": plan.margin_table.shape[2],
        "acc": tl.float64 if logits.dtype == torch.float64 else tl.float32,
        "block": block,
        "num_warps": warps,
    }
