"""The Triton kernels against log-softmax in float64. Run by test_triton.py: on a CPU by Triton's interpreter, or a GPU.

The interpreter is selected before triton is imported, so this runs in a process of its own.
"""

import os
from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from segdpo.kernels import triton_launch
from segdpo.kernels.pixels import EvenMeasure, Measure
from segdpo.kernels.triton_scores import is_usable, triton_scores

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
# Tiles take 64 to 1024 pixels: several of them, the last one not full.
PIXELS = (1, 37, 150, 1030) if INTERPRETED else (1, 37, 2500, 512 * 512, 1000 * 777)
# The interpreter cuts bf16 off instead of rounding to nearest.
ROUNDING = {torch.float64: 1e-14, torch.float32: 1e-6, torch.float16: 2**-10, torch.bfloat16: 2**-7}


def arrange(logits, layout):
    if layout == "channels_last":
        return logits.transpose(1, 2).contiguous().transpose(1, 2)
    if layout == "sliced":
        return torch.stack([logits, logits], -1).flatten(2)[..., ::2]
    return logits


@st.composite
def cases(draw):
    """Logits of any layout and type; one or many pairs an image, or none; one to three scores of any mixture."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32 - 1)))
    images, channels = draw(st.integers(1, 3)), draw(st.sampled_from([1, 1, 2, 3, 5, 19, 21, 33]))
    pixels, dtype = draw(st.sampled_from(PIXELS)), draw(st.sampled_from(list(ROUNDING)))
    logits = torch.randn(images, channels, pixels, generator=generator) * draw(st.sampled_from([1.0, 10.0]))
    logits = arrange(logits.to(dtype), draw(st.sampled_from(["planes", "channels_last", "sliced"])))
    shared = draw(st.booleans())
    pairs = draw(st.integers(1, 5)) if shared else images
    image_index = torch.randint(images, (pairs,), generator=generator) if shared else None
    classes, ids = max(2, channels), draw(st.sampled_from([torch.uint8, torch.int64]))
    chosen, other = torch.randint(classes, (2, pairs, pixels), generator=generator)
    changed = torch.rand(pairs, pixels, generator=generator) < draw(st.sampled_from([0.0, 0.1, 1.0]))
    chosen, rejected = chosen.to(ids), torch.where(changed, other, chosen).to(ids)

    def measure():
        inside = torch.rand(pairs, pixels, generator=generator) < draw(st.sampled_from([0.0, 0.6, 1.0]))
        weights = torch.rand(pairs, draw(st.sampled_from([1, classes])), generator=generator)
        quantity = draw(st.sampled_from(["log_likelihood", "log_odds"])) if channels == 1 else "log_likelihood"
        return Measure(inside, weights.to(torch.promote_types(dtype, torch.float32)), chosen, image_index, quantity)

    measures = [measure() for _ in range(draw(st.integers(1, 3)))]
    return logits, chosen, rejected, measures, [draw(st.booleans()) for _ in measures]


def to_device(case):
    logits, chosen, rejected, measures, wants = case
    chosen, rejected = chosen.to(DEVICE), rejected.to(DEVICE)
    moved = []
    for m in measures:
        index = None if m.image_index is None else m.image_index.to(DEVICE)
        moved.append(Measure(m.inside.to(DEVICE), m.weights.to(DEVICE), m.weigh_by.to(DEVICE), index, m.quantity))
    # Tensor.to keeps the strides of dense tensors alone.
    layout = torch.empty_strided(logits.shape, logits.stride(), dtype=logits.dtype, device=DEVICE)
    return layout.copy_(logits), chosen, rejected, moved, wants


def truth(case):
    """Every pixel of every mask by log-softmax in float64; one channel is two classes of logits 0 and z."""
    logits, chosen, rejected, measures, wants = case
    logits = logits.double().requires_grad_()
    classes = torch.cat([torch.zeros_like(logits), logits], 1) if logits.shape[1] == 1 else logits
    log_p = classes.log_softmax(1)
    results = []
    for m in measures:
        image = torch.arange(len(logits), device=logits.device) if m.image_index is None else m.image_index
        scores = [log_p[image].gather(1, mask.long()[:, None])[:, 0] for mask in (chosen, rejected)]
        if m.quantity == "log_odds":
            scores = [(log_p[:, 1] - log_p[:, 0])[image] * (2 * mask.long() - 1) for mask in (chosen, rejected)]
        weight = m.weights.double().expand(-1, classes.shape[1]).gather(1, m.weigh_by.long()) * m.inside
        whole, other = ((weight * score).sum(1) for score in scores)
        results.append((whole - other, whole))
    return logits, [m for m, _ in results], [whole if w else None for (_, whole), w in zip(results, wants, strict=True)]


def ours(case):
    logits = case[0].detach().requires_grad_()
    return logits, *triton_scores(logits, *case[1:])


def values_and_gradient(logits, margins, whole):
    values = torch.cat([value for value in [*margins, *whole] if value is not None])
    upstream = torch.linspace(-1, 2, len(values), dtype=values.dtype, device=values.device)
    (gradient,) = torch.autograd.grad((values * upstream).sum(), logits)
    return values.detach(), gradient


def assert_equal_truth(case):
    values, gradient = values_and_gradient(*ours(case))
    expected, slope = values_and_gradient(*truth(case))
    logits = case[0]
    assert values.dtype == torch.promote_types(logits.dtype, torch.float32)
    assert gradient.dtype == logits.dtype
    step = ROUNDING[values.dtype]
    size = logits.abs().max().item() + 5
    torch.testing.assert_close(values.double(), expected, rtol=step, atol=step * size * logits.shape[2] ** 0.5)
    # A kept log-sum-exp is as exact as a number of its size, and several slopes meet in one pixel.
    torch.testing.assert_close(gradient.double(), slope, rtol=2 * ROUNDING[logits.dtype], atol=step * size)


def small(channels=5, pixels=40, images=3, pairs=None, dtype=torch.float32):
    """One score of all pixels; `pairs` of image 1, if given, so that images 0 and 2 have none."""
    logits = torch.randn(images, channels, pixels).to(dtype)
    index = None if pairs is None else torch.ones(pairs, dtype=torch.int64)
    chosen, rejected = torch.randint(max(2, channels), (2, pairs or images, pixels), dtype=torch.uint8)
    inside = torch.ones_like(chosen, dtype=torch.bool)
    measure = Measure(inside, torch.ones(len(chosen), 1), chosen, index, "log_likelihood")
    return to_device((logits, chosen, rejected, [measure], [True]))


def test_the_device_is_usable():
    assert is_usable(torch.zeros(1, 2, 3, device=DEVICE))
    assert not is_usable(torch.zeros(0, 2, 3, device=DEVICE))


@pytest.mark.parametrize("wants", [False, True])
def test_log_odds_of_one_channel_by_hand(wants):
    z = torch.tensor([[[1.0, -2.0, 4.0]]], device=DEVICE, requires_grad=True)
    chosen, rejected = torch.tensor([[[1, 0, 1]], [[0, 0, 0]]], dtype=torch.uint8, device=DEVICE)
    measure = Measure(chosen < 2, torch.ones(1, 1, device=DEVICE), chosen, None, "log_odds")
    [margin], [whole] = triton_scores(z, chosen, rejected, [measure], [wants])
    assert margin.item() == (1 + 1) + (4 + 4)
    assert torch.autograd.grad(margin.sum(), z, retain_graph=True)[0].tolist() == [[[2, 0, 2]]]
    if wants:
        assert whole.item() == 1 + 2 + 4
        assert torch.autograd.grad(whole.sum(), z)[0].tolist() == [[[1, -1, 1]]]


@pytest.mark.parametrize("channels", [1, 3, 20])
@pytest.mark.parametrize("wants", [[False], [True]])
def test_two_runs_give_the_same_bits(channels, wants):
    pixels = 150 if INTERPRETED else 10**6
    case = [*small(channels, pixels, pairs=4)[:4], wants]
    first, second = (values_and_gradient(*ours(case)) for _ in range(2))
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


@pytest.mark.parametrize("channels", [1, 3, 20])
def test_an_image_without_pairs_gets_no_gradient_and_nothing_inside_scores_nothing(channels):
    logits, chosen, rejected, [measure], wants = small(channels, pairs=2)
    measure.inside[1] = False
    values, gradient = values_and_gradient(*ours((logits, chosen, rejected, [measure], wants)))
    assert (gradient[[0, 2]] == 0).all()
    assert gradient[1].abs().sum() > 0
    assert values[[1, 3]].tolist() == [0, 0]


@pytest.mark.parametrize("channels", [1, 3, 20])
def test_a_margin_leaves_agreeing_pixels_exactly_alone(channels):
    logits, chosen, rejected, measures, _ = small(channels)
    _, gradient = values_and_gradient(*ours((logits, chosen, rejected, measures, [False])))
    moved = gradient.abs().sum(1) > 0
    assert torch.equal(moved, chosen != rejected)


def test_a_second_derivative_is_refused():
    logits, _, whole = ours(small())
    with pytest.raises(RuntimeError, match=r'a second .* backend="reference"'):
        torch.autograd.grad(whole[0].sum(), logits, create_graph=True)


def test_a_margin_of_even_weights_reads_no_whole_masks():
    logits, chosen, rejected, [measure], _ = small(pairs=2)

    def find():
        raise AssertionError("whole masks were read")

    even = EvenMeasure(find, measure.weights / 8, measure.image_index, "log_likelihood")
    by_class = Measure(measure.inside, torch.rand(2, 5, device=DEVICE), chosen, measure.image_index, "log_likelihood")
    z, margins, _ = ours((logits, chosen, rejected, [even, by_class, measure], [False, False, True]))
    assert torch.equal(margins[0], margins[2] / 8)
    (even_slope,) = torch.autograd.grad(margins[0].sum(), z, retain_graph=True)
    (slope,) = torch.autograd.grad(margins[2].sum(), z)
    assert torch.equal(even_slope, slope / 8)


@pytest.mark.parametrize("wants", [[False], [True]])
def test_illegal_classes_and_images_make_a_score_nan(wants):
    """On a GPU classes and image_index are not checked first."""
    logits, chosen, rejected, measures, _ = small(pairs=3)
    chosen[0, 7], rejected[0, 7] = 5, 0
    measures[0].image_index[2] = 3
    _, margins, _ = ours((logits, chosen, rejected, measures, wants))
    assert margins[0].isnan().tolist() == [True, False, True]


@pytest.mark.parametrize("channels", [1, 4, 20])
def test_huge_half_precision_logits_stay_exact(channels):
    logits, *rest = small(channels, dtype=torch.float16)
    assert_equal_truth(((logits * 6000).clamp(-6e4, 6e4), *rest))


@pytest.mark.parametrize("channels", [1, 3])
def test_a_label_that_is_no_class_makes_the_chosen_score_nan_where_the_masks_agree(channels):
    logits, chosen, rejected, measures, wants = small(channels)
    chosen[0, 7] = rejected[0, 7] = 3
    _, _, [whole] = ours((logits, chosen, rejected, measures, wants))
    assert whole.isnan().tolist() == [True, False, False]


def test_a_label_that_is_no_class_of_one_channel_makes_the_margin_nan():
    logits, chosen, rejected, measures, _ = small(channels=1)
    chosen[:2, 7], rejected[:2, 7] = 2, 1
    measures[0].inside[1, 7] = False
    _, margins, _ = ours((logits, chosen, rejected, measures, [False]))
    assert margins[0].isnan().tolist() == [True, False, False]


@pytest.mark.parametrize(
    ("channels", "layout", "sizes"),
    [
        (1, "planes", {"flat": 32, "flat_warps": 2}),
        (20, "planes", {"bytes": 128, "few": 2, "warps": 8}),
        (20, "planes", {"many": 8, "values": 256}),
        (20, "channels_last", {"last": 16, "values": 1024}),
    ],
)
def test_tiles_of_other_sizes_give_the_same_scores(monkeypatch, channels, layout, sizes):
    monkeypatch.setattr(triton_launch, "TILES", replace(triton_launch.TILES, **sizes))
    for pairs in (None, 2):
        logits, *rest = small(channels, pixels=70, images=2, pairs=pairs)
        assert_equal_truth((arrange(logits, layout), *rest))


@pytest.mark.parametrize("wants", [[False], [True]])
@pytest.mark.parametrize("stride", [(2**31 - 16, 40, 1), (40, 2**30, 1), (1, 3, 2**27)])
def test_places_beyond_two_to_the_31(tmp_path, stride, wants):
    """Factors that fit into 32 bits, products that do not: places in a file of holes, of which a few pages are used."""
    logits, *rest, _ = small(channels=5, pixels=40)
    file, last = tmp_path / "logits", [size - 1 for size in logits.shape]
    places = 1 + sum(number * step for number, step in zip(last, stride, strict=True))
    if INTERPRETED:
        memory = torch.from_file(str(file), shared=True, size=places, dtype=torch.bfloat16)
    else:
        memory = torch.empty(places, dtype=torch.bfloat16, device=DEVICE)
    apart = memory.as_strided(logits.shape, stride).copy_(logits)
    assert_equal_truth((apart, *rest, wants))
    file.unlink(missing_ok=True)


@pytest.mark.skipif(INTERPRETED, reason="more memory than the CPU's tests may take")
@pytest.mark.parametrize(("channels", "images", "pixels"), [(150, 16, 1024 * 1024), (3, 2, 2**29 + 5), (1, 3, 2**30)])
@pytest.mark.parametrize("wants", [[False], [True]])
def test_more_than_two_to_the_31_logits(channels, images, pixels, wants):
    """The last image of a large batch scores and learns as it does alone."""
    logits = torch.empty(images, channels, pixels, dtype=torch.bfloat16, device=DEVICE)
    assert logits.numel() > 2**31
    for image in logits:
        image.normal_()
    chosen, rejected = torch.randint(max(2, channels), (2, images, pixels), dtype=torch.uint8, device=DEVICE)
    inside, weights = torch.ones_like(chosen, dtype=torch.bool), torch.ones(images, 1, device=DEVICE)

    def last_of(some):
        z = logits[some].detach().requires_grad_()
        measure = Measure(inside[some], weights[some], chosen[some], None, "log_likelihood")
        margins, whole = triton_scores(z, chosen[some], rejected[some], [measure], wants)
        values = torch.stack([value[-1] for value in [*margins, *whole] if value is not None])
        (gradient,) = torch.autograd.grad(values.sum(), z)
        return values.detach(), gradient[-1].clone()

    whole, alone = last_of(slice(None)), last_of(slice(images - 1, None))
    assert whole[1].abs().sum(dtype=torch.float32) > 0
    torch.testing.assert_close(whole[0], alone[0], rtol=1e-4, atol=0.1)  # sums of up to 2**30 terms
    torch.testing.assert_close(whole[1], alone[1], rtol=2**-7, atol=1e-6)


@pytest.mark.skipif(INTERPRETED, reason="a CPU is one device")
def test_logits_are_scored_on_their_own_device_whichever_is_current():
    logits, chosen, rejected, [measure], wants = small(channels=5, pairs=3)
    found = values_and_gradient(*ours((logits, chosen, rejected, [measure], wants)))
    last = torch.device("cuda", torch.cuda.device_count() - 1)  # the second GPU, where there is one
    parts = [part.to(last) for part in (measure.inside, measure.weights, measure.weigh_by, measure.image_index)]
    moved = [logits.to(last), chosen.to(last), rejected.to(last), [Measure(*parts, measure.quantity)], wants]
    assert torch.cuda.current_device() == 0
    there = values_and_gradient(*ours(moved))
    assert all(one.device == last for one in there)
    torch.testing.assert_close([one.cpu() for one in there], [one.cpu() for one in found])


@pytest.mark.skipif(INTERPRETED, reason="a CPU never waits for a device")
def test_the_device_is_never_waited_for():
    case = small(channels=19, pixels=5000, pairs=4)
    values_and_gradient(*ours(case))
    z = case[0].detach().requires_grad_()
    torch.cuda.set_sync_debug_mode("error")
    try:
        margins, [whole] = triton_scores(z, *case[1:])
        (margins[0] + whole).sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.untraced  # one by one, the cases above went through the same lines
@settings(max_examples=25 if INTERPRETED else 40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(case=cases())
def test_values_and_gradient_equal_log_softmax_in_float64(case):
    assert_equal_truth(to_device(case))
