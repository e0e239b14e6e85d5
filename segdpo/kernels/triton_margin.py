"""Triton kernel of margins alone: where the two masks agree, nothing but the masks is read."""

from typing import no_type_check

import triton
import triton.language as tl

from segdpo.kernels.triton_pixels import class_logit, counted, own_pixels, pixel_weight


@triton.jit(do_not_specialize=["images", "pairs"])
@no_type_check
def margin_forward(
    partial,
    logits,
    chosen,
    rejected,
    insides,
    weigh_by,
    table,
    image_index,
    images,
    pairs,
    channels,
    pixels,
    image_stride,
    channel_stride,
    pixel_stride,
    even: tl.constexpr,
    indexed: tl.constexpr,
    binary: tl.constexpr,
    columns: tl.constexpr,
    acc: tl.constexpr,
    block: tl.constexpr,
):
    """Write `partial[score, pair, tile]` = Σ weight · (z[y⁺] − z[y⁻]) over the tile's pixels; one program a tile."""
    pair, tile, pixel, real = own_pixels(pixels, block)
    at = pair * pixels + pixel
    plus = tl.load(chosen + at, mask=real, other=0)
    minus = tl.load(rejected + at, mask=real, other=0)
    differ = real & (plus != minus)
    image = pair
    if indexed:
        image = tl.load(image_index + pair).to(tl.int64)
    # One for each pixel: Triton's interpreter gives a single comparison a wrong type when it spreads it.
    image += tl.zeros([block], tl.int64)
    known = differ & (image >= 0) & (image < images)
    here = logits + image * image_stride + pixel * pixel_stride
    step = class_logit(here, plus, channels, channel_stride, known, binary, acc)
    step -= class_logit(here, minus, channels, channel_stride, known, binary, acc)
    step = tl.where(known, step, float("nan"))
    for score in tl.static_range(len(insides)):
        inside = counted(insides[score], at, differ, (even >> score) & 1)
        weight = pixel_weight(table, weigh_by[score], score, pair, at, inside, pairs, columns)
        total = tl.sum(tl.where(inside, weight * step, 0.0), 0)
        tl.store(partial + (score * pairs + pair) * tl.cdiv(pixels, block) + tile, total)
