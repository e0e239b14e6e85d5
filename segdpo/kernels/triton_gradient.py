"""Triton kernel of the gradient: all scores, all pairs of an image, all channels in one pass, each logit written once.

With a = Σ g·w of the chosen scores and b of the margins, pixel by pixel, the gradient is
Σ_pairs (a + b)·onehot(y⁺) − b·onehot(y⁻), less (Σ_pairs a)·softmax. No two programs write to one place, so nothing is
added atomically and the same input gives the same bits.
"""

from typing import no_type_check

import triton
import triton.language as tl

from segdpo.kernels.triton_chosen import log_sum_exp
from segdpo.kernels.triton_pixels import own_pixels, pairs_of, slopes


@triton.jit
@no_type_check
def slopes_of_pair(
    chosen,
    rejected,
    insides,
    weigh_by,
    margin_slopes,
    chosen_slopes,
    pair,
    pairs,
    pixels,
    pixel,
    real,
    wanted: tl.constexpr,
    even: tl.constexpr,
    columns: tl.constexpr,
):
    """Return a pair's two labels of each pixel, and the slopes of its chosen scores and of its margins there."""
    every: tl.constexpr = (1 << len(insides)) - 1
    at = pair * pixels + pixel
    # Narrow, since every channel is compared with them; the forward has looked for labels that are no class.
    plus = tl.load(chosen + at, mask=real, other=0).to(tl.int32)
    minus = tl.load(rejected + at, mask=real, other=0).to(tl.int32)
    differ = real & (plus != minus)
    b = slopes(margin_slopes, insides, weigh_by, pair, at, differ, pairs, every, even, columns)
    a = slopes(chosen_slopes, insides, weigh_by, pair, at, real, pairs, wanted, even, columns)
    return plus, minus, a, b


@triton.jit
@no_type_check
def onehots(channel, plus, minus, a, b):
    """Return (a + b) · onehot(y⁺) − b · onehot(y⁻) for the given channels."""
    rise = tl.where(channel[None, :] == plus[:, None], (a + b)[:, None], 0.0)
    return rise - tl.where(channel[None, :] == minus[:, None], b[:, None], 0.0)


@triton.jit(do_not_specialize=["pairs"])
@no_type_check
def softmax_gradient(
    gradient,
    log_total,
    logits,
    chosen,
    rejected,
    insides,
    weigh_by,
    margin_slopes,
    chosen_slopes,
    order,
    starts,
    pairs,
    channels,
    pixels,
    image_stride,
    channel_stride,
    pixel_stride,
    gradient_image_stride,
    gradient_channel_stride,
    gradient_pixel_stride,
    wanted: tl.constexpr,
    even: tl.constexpr,
    indexed: tl.constexpr,
    stored: tl.constexpr,
    columns: tl.constexpr,
    acc: tl.constexpr,
    block: tl.constexpr,
    group: tl.constexpr,
):
    """Write the gradient of logits of several channels; `wanted` = 0 reads no logits. May overwrite them."""
    image, _, pixel, real = own_pixels(pixels, block)
    here = logits + image * image_stride + pixel * pixel_stride
    there = gradient + image * gradient_image_stride + pixel * gradient_pixel_stride
    first, last = pairs_of(image, starts, indexed)
    if not indexed:
        plus, minus, a, b = slopes_of_pair(
            chosen, rejected, insides, weigh_by, margin_slopes, chosen_slopes,
            image, pairs, pixels, pixel, real, wanted, even, columns,
        )  # fmt: skip
    if wanted:
        if indexed:
            pull = tl.zeros([block], acc)
            for place in range(first, last):
                pair = tl.load(order + place)
                at = pair * pixels + pixel
                pull += slopes(chosen_slopes, insides, weigh_by, pair, at, real, pairs, wanted, even, columns)
        else:
            pull = a
        if stored:
            log_sum = tl.load(log_total + image * pixels + pixel, mask=real, other=0.0)
        else:
            top, rest = log_sum_exp(here, channels, channel_stride, real, acc, block, group)
            log_sum = top + rest
    for start in range(0, channels, group):
        channel = start + tl.arange(0, group)
        exists = real[:, None] & (channel < channels)[None, :]
        if wanted:
            read = here[:, None] + channel.to(tl.int64)[None, :] * channel_stride
            value = tl.load(read, mask=exists, other=0.0).to(acc)
            change = -pull[:, None] * tl.exp(value - log_sum[:, None])
        else:
            change = tl.zeros([block, group], acc)
        if indexed:
            for place in range(first, last):
                pair = tl.load(order + place)
                plus, minus, a, b = slopes_of_pair(
                    chosen, rejected, insides, weigh_by, margin_slopes, chosen_slopes,
                    pair, pairs, pixels, pixel, real, wanted, even, columns,
                )  # fmt: skip
                change += onehots(channel, plus, minus, a, b)
        else:
            change += onehots(channel, plus, minus, a, b)
        write = there[:, None] + channel.to(tl.int64)[None, :] * gradient_channel_stride
        tl.store(write, change.to(gradient.dtype.element_ty), mask=exists)


@triton.jit(do_not_specialize=["pairs"])
@no_type_check
def sigmoid_gradient(
    gradient,
    logits,
    chosen,
    rejected,
    insides,
    weigh_by,
    margin_slopes,
    chosen_slopes,
    order,
    starts,
    pairs,
    pixels,
    image_stride,
    pixel_stride,
    gradient_image_stride,
    gradient_pixel_stride,
    wanted: tl.constexpr,
    even: tl.constexpr,
    odds: tl.constexpr,
    indexed: tl.constexpr,
    columns: tl.constexpr,
    acc: tl.constexpr,
    block: tl.constexpr,
):
    """Write the gradient of logits of one channel: log-odds are ±z, log p is log σ(±z)."""
    every: tl.constexpr = (1 << len(insides)) - 1
    image, _, pixel, real = own_pixels(pixels, block)
    first, last = pairs_of(image, starts, indexed)
    change = tl.zeros([block], acc)
    if wanted & ~odds:
        value = tl.load(logits + image * image_stride + pixel * pixel_stride, mask=real, other=0.0).to(acc)
        p = 1.0 / (1.0 + tl.exp(-value))
    for place in range(first, last):
        pair = image
        if indexed:
            pair = tl.load(order + place)
        at = pair * pixels + pixel
        plus = (tl.load(chosen + at, mask=real, other=0) > 0).to(acc)
        minus = (tl.load(rejected + at, mask=real, other=0) > 0).to(acc)
        differ = real & (plus != minus)
        down = slopes(margin_slopes, insides, weigh_by, pair, at, differ, pairs, every, even, columns)
        change += down * (plus - minus)
        if wanted & ~odds:
            up = slopes(chosen_slopes, insides, weigh_by, pair, at, real, pairs, wanted & ~odds, even, columns)
            change += up * (plus - p)
        if wanted & odds:
            up = slopes(chosen_slopes, insides, weigh_by, pair, at, real, pairs, wanted & odds, even, columns)
            change += up * (2.0 * plus - 1.0)
    write = gradient + image * gradient_image_stride + pixel * gradient_pixel_stride
    tl.store(write, change.to(gradient.dtype.element_ty), mask=real)
