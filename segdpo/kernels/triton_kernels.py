"""The Triton kernels of margins, chosen scores and gradients."""

from typing import no_type_check

import triton
import triton.language as tl


@triton.jit
@no_type_check
def own_pixels(pixels, block: tl.constexpr):
    """Return the row (pair or image), the tile and the pixels of this program, and which of the pixels exist."""
    blocks = tl.cdiv(pixels, block)
    row = (tl.program_id(0) // blocks).to(tl.int64)
    tile = (tl.program_id(0) % blocks).to(tl.int64)
    pixel = tile * block + tl.arange(0, block)
    return row, tile, pixel, pixel < pixels


@triton.jit
@no_type_check
def pairs_of(image, starts, indexed: tl.constexpr):
    """Return the range of an image's pairs in the list of pairs sorted by image."""
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
    """Return z[label] at `logits`, the addresses of the pixels in channel 0; one channel means two classes of 0 and z.

    An illegal label gives NaN, since labels are not checked on a GPU.
    """
    if binary:
        value = tl.load(logits, mask=wanted & (label > 0), other=0.0).to(acc)
        value = tl.where((label >= 0) & (label < 2), value, float("nan"))
    else:
        legal = (label >= 0) & (label < channels)
        value = tl.load(logits + label.to(tl.int64) * channel_stride, mask=wanted & legal, other=float("nan")).to(acc)
    return value


@triton.jit
@no_type_check
def counted(inside, at, wanted, even: tl.constexpr):
    """Return which of the wanted pixels a score counts; an even score counts all of them."""
    return wanted if even else wanted & (tl.load(inside + at, mask=wanted, other=0) != 0)


@triton.jit
@no_type_check
def pixel_weight(table, weigh_by, score, pair, at, inside, pairs, columns: tl.constexpr):
    """Return `table[score, pair, class]` with the class from `weigh_by`; one column is one weight for all classes."""
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
    """Return Σ table over those of the scores (bits) that count the pixel: the derivative of its quantity."""
    total = tl.zeros(wanted.shape, table.dtype.element_ty)
    for score in tl.static_range(len(insides)):
        if (scores >> score) & 1:
            inside = counted(insides[score], at, wanted, (even >> score) & 1)
            weight = pixel_weight(table, weigh_by[score], score, pair, at, inside, pairs, columns)
            total += tl.where(inside, weight, 0.0)
    return total


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
    """Write `partial[score, pair, tile]` = Σ weight · (z[y⁺] − z[y⁻]) over a tile; one program per tile."""
    pair, tile, pixel, real = own_pixels(pixels, block)
    at = pair * pixels + pixel
    plus = tl.load(chosen + at, mask=real, other=0)
    minus = tl.load(rejected + at, mask=real, other=0)
    differ = real & (plus != minus)
    image = pair
    if indexed:
        image = tl.load(image_index + pair).to(tl.int64)
    # One value per pixel: Triton's interpreter gives a broadcast scalar comparison a wrong type.
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


@triton.jit
@no_type_check
def log_sum_exp(logits, channels, channel_stride, real, acc: tl.constexpr, block: tl.constexpr, group: tl.constexpr):
    """Return the largest logit m of each pixel and log Σ exp(z − m), from `group` channels at a time."""
    # Starts at a finite number, since −inf − −inf would be NaN.
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
    # Pixels past the end have no logits; any finite number is fine.
    return tl.where(real, top, 0.0), tl.log(tl.where(real, total, 1.0))


@triton.jit
@no_type_check
def log_sigmoid(odds):
    """Return log σ(odds) to the last digit, with the rounding error of 1 + e for small e divided out (log1p)."""
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
    """Write `partial[0, score, pair, tile]` of the margins, and `partial[1, …]` of the chosen scores that are wanted.

    One program per tile of an image loops over the image's pairs, so that the log-sum-exp is computed once.
    `wanted` and `odds` have one bit per score: whether its chosen score is wanted, and whether it is in log-odds.
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
            # z_plus is NaN for an illegal label.
            log_odds = tl.where(plus == 0, -value, z_plus)
            log_p = log_sigmoid(log_odds)
        else:
            # In this order no digit is lost to a large m.
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
    """Return both labels of each pixel of a pair, and the slopes of its chosen scores and of its margins."""
    every: tl.constexpr = (1 << len(insides)) - 1
    at = pair * pixels + pixel
    # int32, since every channel is compared with them; the forward has turned illegal labels into NaN.
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
    """Write the gradient of logits of several channels; with `wanted` = 0 no logits are read."""
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
