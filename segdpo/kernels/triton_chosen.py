"""Triton kernel of chosen scores and margins: one pass over the logits, a class at a time, whatever their number."""

from typing import no_type_check

import triton
import triton.language as tl

from segdpo.kernels.triton_pixels import class_logit, counted, own_pixels, pairs_of, pixel_weight


@triton.jit
@no_type_check
def log_sum_exp(logits, channels, channel_stride, real, acc: tl.constexpr, block: tl.constexpr, group: tl.constexpr):
    """Return the largest logit m of each pixel and log Σ exp(z − m), from `group` channels at a time."""
    # A finite start: −inf − −inf would be NaN.
    top = tl.full([block], -3.0e38, acc)
    total = tl.zeros([block], acc)
    for first in range(0, channels, group):
        channel = first + tl.arange(0, group)
        here = logits[:, None] + channel.to(tl.int64)[None, :] * channel_stride
        exists = real[:, None] & (channel < channels)[None, :]
        values = tl.load(here, mask=exists, other=float("-inf")).to(acc)
        higher = tl.maximum(top, tl.max(values, 1))
        total = total * tl.exp(top - higher) + tl.sum(tl.exp(values - higher[:, None]), 1)
        top = higher
    # Pixels past the end have no logit: any finite number does.
    return tl.where(real, top, 0.0), tl.log(tl.where(real, total, 1.0))


@triton.jit
@no_type_check
def log_sigmoid(odds):
    """Return log σ(odds) to the last digit: 1 + e would swallow a small e, its rounding error is divided out again."""
    small = tl.exp(-tl.abs(odds))
    rounded = 1.0 + small
    lost = tl.where(rounded == 1.0, 1.0, rounded - 1.0)
    return tl.minimum(odds, 0.0) - tl.where(rounded == 1.0, small, tl.log(rounded) * (small / lost))


@triton.jit(do_not_specialize=["pairs"])
@no_type_check
def chosen_forward(
    partial,
    log_total,
    logits,
    chosen,
    rejected,
    insides,
    weigh_by,
    margin_table,
    chosen_table,
    order,
    starts,
    pairs,
    channels,
    pixels,
    image_stride,
    channel_stride,
    pixel_stride,
    wanted: tl.constexpr,
    odds: tl.constexpr,
    even: tl.constexpr,
    indexed: tl.constexpr,
    binary: tl.constexpr,
    stored: tl.constexpr,
    columns: tl.constexpr,
    acc: tl.constexpr,
    block: tl.constexpr,
    group: tl.constexpr,
):
    """Write `partial[0, score, pair, tile]`, the margin's part, and `partial[1, …]`, the chosen mask's, where wanted.

    One program a tile of an image; the image's pairs are looped inside, so that its log-sum-exp is made once.
    `wanted` and `odds` are bits: of which scores the chosen one is wanted, and which of them count log-odds.
    """
    image, tile, pixel, real = own_pixels(pixels, block)
    tiles = tl.cdiv(pixels, block)
    here = logits + image * image_stride + pixel * pixel_stride
    if not binary:
        top, rest = log_sum_exp(here, channels, channel_stride, real, acc, block, group)
        if stored:
            tl.store(log_total + image * pixels + pixel, top + rest, mask=real)
    first, last = pairs_of(image, starts, indexed)
    for place in range(first, last):
        pair = image
        if indexed:
            pair = tl.load(order + place)
        at = pair * pixels + pixel
        plus = tl.load(chosen + at, mask=real, other=0)
        minus = tl.load(rejected + at, mask=real, other=0)
        differ = real & (plus != minus)
        z_plus = class_logit(here, plus, channels, channel_stride, real, binary, acc)
        z_minus = class_logit(here, minus, channels, channel_stride, differ, binary, acc)
        step = tl.where(differ, z_plus - z_minus, 0.0)
        if binary:
            value = tl.load(here, mask=real, other=0.0).to(acc)
            log_odds = tl.where(plus > 0, value, -value)
            log_p = log_sigmoid(log_odds)
        else:
            # In this order no digit of a large m is lost.
            log_p = (z_plus - top) - rest
        for score in tl.static_range(len(insides)):
            inside = counted(insides[score], at, real, (even >> score) & 1)
            row = partial + (score * pairs + pair) * tiles + tile
            weight = pixel_weight(margin_table, weigh_by[score], score, pair, at, inside, pairs, columns)
            tl.store(row, tl.sum(tl.where(inside, weight * step, 0.0), 0))
            if (wanted >> score) & 1:
                quantity = log_p
                if (odds >> score) & 1:
                    quantity = log_odds
                weight = pixel_weight(chosen_table, weigh_by[score], score, pair, at, inside, pairs, columns)
                row += len(insides) * pairs * tiles
                tl.store(row, tl.sum(tl.where(inside, weight * quantity, 0.0), 0))
