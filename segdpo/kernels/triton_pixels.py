"""What the Triton kernels share: how a program finds its pixels, their logits, their weights.

Every function here is compiled for the GPU (or run by Triton's interpreter); none is called from Python. `acc` is the
type sums are made in: fp32, or fp64 for fp64 logits. Offsets are int64, since images · channels · pixels may pass 2³¹.
"""

from typing import no_type_check

import triton
import triton.language as tl


@triton.jit
@no_type_check
def own_pixels(pixels, block: tl.constexpr):
    """Return which row (pair or image) and which of its pixels this program takes, and which of them exist."""
    blocks = tl.cdiv(pixels, block)
    row = (tl.program_id(0) // blocks).to(tl.int64)
    tile = (tl.program_id(0) % blocks).to(tl.int64)
    pixel = tile * block + tl.arange(0, block)
    return row, tile, pixel, pixel < pixels


@triton.jit
@no_type_check
def pairs_of(image, starts, indexed: tl.constexpr):
    """Return the range of places in the list of pairs, sorted by image, that holds the image's own."""
    if indexed:
        first = tl.load(starts + image)
        last = tl.load(starts + image + 1)
    else:
        first = image
        last = image + 1
    return first, last


@triton.jit
@no_type_check
def class_logit(logits, label, channels, channel_stride, wanted, binary: tl.constexpr, acc: tl.constexpr):
    """Return z[label] at `logits`, the pixels' addresses in channel 0; one channel is two classes of logits 0 and z.

    A label that is no class gives NaN: on a GPU nobody looks at the labels first, and a wrong number would pass unseen.
    """
    if binary:
        value = tl.load(logits, mask=wanted & (label > 0), other=0.0).to(acc)
    else:
        legal = (label >= 0) & (label < channels)
        value = tl.load(logits + label.to(tl.int64) * channel_stride, mask=wanted & legal, other=float("nan")).to(acc)
    return value


@triton.jit
@no_type_check
def counted(inside, at, wanted, even: tl.constexpr):
    """Return which of the wanted pixels a score counts: all of them where it is even."""
    return wanted if even else wanted & (tl.load(inside + at, mask=wanted, other=0) != 0)


@triton.jit
@no_type_check
def pixel_weight(table, weigh_by, score, pair, at, inside, pairs, columns: tl.constexpr):
    """Return `table[score, pair, class]`, the class read from `weigh_by`; a table of one column weighs all alike."""
    row = table + (score * pairs + pair) * columns
    if columns == 1:
        weight = tl.load(row)
    else:
        label = tl.load(weigh_by + at, mask=inside, other=0).to(tl.int64)
        weight = tl.load(row + label, mask=inside & (label >= 0) & (label < columns), other=float("nan"))
    return weight


@triton.jit
@no_type_check
def slopes(
    table,
    insides,
    weigh_by,
    pair,
    at,
    wanted,
    pairs,
    scores: tl.constexpr,
    even: tl.constexpr,
    columns: tl.constexpr,
):
    """Return Σ table over those of the scores (bits) that count the pixel; what a step of its quantity changes."""
    total = tl.zeros(wanted.shape, table.dtype.element_ty)
    for score in tl.static_range(len(insides)):
        if (scores >> score) & 1:
            inside = counted(insides[score], at, wanted, (even >> score) & 1)
            weight = pixel_weight(table, weigh_by[score], score, pair, at, inside, pairs, columns)
            total += tl.where(inside, weight, 0.0)
    return total
