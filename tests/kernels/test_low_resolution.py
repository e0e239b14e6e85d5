"""Scores from logits before their upsampling against F.interpolate and the plain path, in values and gradients."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from segdpo import Score, kl_to_reference, score_pairs, score_ranking
from segdpo.kernels import low_resolution
from segdpo.kernels.index import pair_index
from segdpo.kernels.low_resolution import LowResolution, low_resolution_margin, neighbours, sum_of_bands
from segdpo.scores import Pairs, Rankings, low_resolution_kl, low_resolution_pairs, low_resolution_ranking

TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5}


@pytest.fixture(autouse=True, scope="module")
def _many_bands_and_chunks():
    """Small images would otherwise be one band and one chunk."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(low_resolution, "CPU_BAND", 200)
        patch.setattr(low_resolution, "LEAST_ROWS", 1)
        patch.setattr(low_resolution, "CHUNK", 37)
        yield


@st.composite
def cases(draw):
    """Small logits, the grid they go to (any ratio, smaller too), the image in it, masks, several pairs an image."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    images, channels = draw(st.integers(1, 3)), draw(st.sampled_from([1, 2, 5]))
    small = tuple(draw(st.integers(1, 9)) for _ in range(2))
    grid = tuple(draw(st.integers(1, 4 * side + 3)) for side in small)
    size = tuple(draw(st.integers(max(1, side - 3), side)) for side in grid)
    shared = draw(st.booleans())
    pairs = draw(st.integers(1, 4)) if shared else images
    classes = max(2, channels)
    chosen = rng.integers(0, classes, (pairs, *size)).astype(np.uint8)
    rejected = np.where(rng.random(chosen.shape) < draw(st.sampled_from([0.0, 0.3, 1.0])), 1, chosen).astype(np.uint8)
    chosen[rng.random(chosen.shape) < 0.1] = 255
    valid = rng.random((images, *size)) > 0.2
    valid[:, -1, -1], chosen[:, -1, -1] = True, 0
    logits = torch.from_numpy(rng.normal(size=(images, channels, *small))) * draw(st.sampled_from([1.0, 10.0]))
    masks = {
        "chosen": torch.from_numpy(chosen),
        "rejected": torch.from_numpy(rejected),
        "valid": torch.from_numpy(valid),
        "image_index": torch.from_numpy(rng.integers(0, images, pairs)) if shared else None,
    }
    return logits, grid, size, draw(st.booleans()), masks


def upsampled(low):
    full = F.interpolate(low.logits, low.grid, mode="bilinear", align_corners=low.align_corners)
    return full[..., : low.size[0], : low.size[1]]


def assert_equal(ours, plain, logits):
    """Values, and the gradients of a random sum of them."""
    tolerance = TOLERANCE[logits.dtype]
    slopes = torch.randn_like(plain)
    grads = [torch.autograd.grad((slopes * one).sum(), logits, retain_graph=True)[0] for one in (ours, plain)]
    torch.testing.assert_close(ours, plain, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(*grads, rtol=tolerance, atol=tolerance)


def make(case, dtype):
    logits, grid, size, align_corners, masks = case
    return LowResolution(logits.to(dtype).requires_grad_(), grid, size, align_corners), masks


@pytest.mark.parametrize("indexed", [False, True])
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("quantity", ["log_likelihood", "log_odds"])
@settings(max_examples=10, deadline=None)
@given(
    case=cases(),
    region=st.sampled_from(["image", "disagreement", "boundary"]),
    reduction=st.sampled_from(["sum", "mean", "class_balanced"]),
)
def test_scores_equal_those_of_the_upsampled_logits(case, region, reduction, quantity, dtype, indexed):
    low, masks = make(case, dtype)
    options = masks | {"quantity": quantity, "region": region, "reduction": reduction}
    plain = score_pairs(upsampled(low), **options, backend="reference")
    pairs = Pairs(**masks, index=pair_index(**masks) if indexed else None)
    ours = low_resolution_pairs(low, pairs, Score(quantity, region, reduction))
    # Sums over the whole image are as large as the image.
    size = masks["chosen"][0].numel() * 10 if reduction == "sum" else 10
    for name in ("margin", "chosen", "rejected"):
        assert_equal(getattr(ours, name) / size, getattr(plain, name) / size, low.logits)


@settings(max_examples=10, deadline=None)
@given(case=cases())
def test_kl_to_reference_equals_that_of_the_upsampled_logits(case):
    policy, masks = make(case, torch.float64)
    reference = replace(policy, logits=torch.randn_like(policy.logits.detach()))
    plain = kl_to_reference(upsampled(policy), upsampled(reference), **masks)
    assert_equal(low_resolution_kl(policy, reference, Pairs(**masks)), plain, policy.logits)


@settings(max_examples=10, deadline=None)
@given(case=cases(), masks=st.integers(2, 4), region=st.sampled_from(["image", "disagreement"]))
def test_rankings_equal_those_of_the_upsampled_logits(case, masks, region):
    low, given_masks = make(case, torch.float64)
    ranking = torch.randint(0, 2, (len(low.logits), masks, *low.size), dtype=torch.uint8)
    valid = given_masks["valid"]
    plain = score_ranking(upsampled(low), ranking, valid=valid, region=region)
    ours = low_resolution_ranking(low, Rankings(ranking, valid), Score(region=region))
    assert_equal(ours.ranked, plain.ranked, low.logits)
    assert_equal(ours.chosen, plain.chosen, low.logits)


def test_a_margin_by_hand():
    """Two logits, 0 and 4, to four pixels: 0, 1, 3, 4 (half-pixel centres), or 0, 4/3, 8/3, 4 (corners aligned)."""
    logits = torch.tensor([[[[0.0, 4.0]]]], dtype=torch.float64, requires_grad=True)
    position, weight = torch.tensor([1, 2]), torch.tensor([2.0, 10.0], dtype=torch.float64)
    plus, minus = torch.tensor([1, 0]), torch.tensor([0, 1])
    for align_corners, expected, grad in ((False, 2 * 1 - 10 * 3, (-1.0, -7.0)), (True, (8 - 80) / 3, (-2.0, -6.0))):
        low = LowResolution(logits, (1, 4), (1, 4), align_corners)
        margin = low_resolution_margin(low, position, plus, minus, weight, pairs=1)
        assert margin.item() == pytest.approx(expected)
        assert torch.autograd.grad(margin.sum(), logits)[0].flatten().tolist() == pytest.approx(grad)


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize(("small", "whole"), [(128, 512), (33, 1000), (250, 731), (1, 7), (7, 1), (9, 9)])
def test_neighbours_are_those_of_interpolate(small, whole, align_corners):
    """In fp32 to the last digits, at sizes where a position's rounding shows."""
    values = torch.randn(1, 1, 1, small)
    first, second, share = neighbours(small, whole, whole, align_corners, torch.float32, torch.device("cpu"))
    ours = values[0, 0, 0, first] * (1 - share) + values[0, 0, 0, second] * share
    expected = F.interpolate(values, (1, whole), mode="bilinear", align_corners=align_corners).flatten()
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_logits_are_scored_in_fp32_under_autocast_too(dtype):
    logits = torch.randn(2, 3, 5, 6).to(dtype).requires_grad_()
    chosen, rejected = torch.randint(0, 3, (2, 2, 20, 24), dtype=torch.uint8)
    low, wide = (LowResolution(one, (20, 24), (20, 24)) for one in (logits, logits.float()))
    expected = score_pairs(upsampled(wide), chosen, rejected)
    with torch.autocast("cpu", torch.bfloat16):
        scores = low_resolution_pairs(low, Pairs(chosen, rejected), Score())
        chosen_score = scores.chosen
    torch.testing.assert_close(scores.margin, expected.margin, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(chosen_score, expected.chosen, rtol=1e-5, atol=1e-5)
    grads = [torch.autograd.grad((s.margin + s.chosen).sum(), logits)[0] for s in (scores, expected)]
    assert grads[0].dtype == dtype
    torch.testing.assert_close(*grads, rtol=2e-2, atol=1e-4)


class Largest(TorchDispatchMode):
    """Notes the most numbers that any tensor made inside has, masks and indices aside."""

    def __init__(self):
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, torch.Tensor) and tensor.is_floating_point():
                # What is expanded from one number has the memory of one.
                self.numbers = max(self.numbers, tensor.untyped_storage().nbytes() // tensor.itemsize)
        return result


def test_nothing_of_the_images_size_and_all_classes_is_made(monkeypatch):
    monkeypatch.setattr(low_resolution, "CPU_BAND", 4096)
    logits = torch.randn(2, 8, 16, 16, requires_grad=True)
    reference = torch.randn(2, 8, 16, 16)
    chosen, rejected = torch.randint(0, 8, (2, 2, 64, 64), dtype=torch.uint8)
    low, held = (LowResolution(one, (64, 64), (64, 64)) for one in (logits, reference))
    with Largest() as ours:
        pairs = Pairs(chosen, rejected)
        scores = low_resolution_pairs(low, pairs, Score())
        (scores.margin + scores.chosen + low_resolution_kl(low, held, pairs)).sum().backward()
    with Largest() as plain:
        score_pairs(upsampled(low), chosen, rejected).chosen.sum().backward()
    assert plain.numbers == 2 * 8 * 64 * 64
    # One float a pixel of the masks is the most, and that is an eighth.
    assert ours.numbers <= 2 * 64 * 64


def test_twice_the_same_on_a_cpu(monkeypatch):
    monkeypatch.setattr(low_resolution, "CPU_BAND", 20_000)
    monkeypatch.setattr(low_resolution, "CHUNK", 10_000)
    torch.set_num_threads(2)
    logits = torch.randn(2, 4, 16, 16, requires_grad=True)
    chosen, rejected = torch.randint(0, 4, (2, 6, 64, 64), dtype=torch.uint8)
    index = torch.tensor([0, 1, 0, 1, 0, 1])
    low = LowResolution(logits, (64, 64), (64, 64))

    def grad():
        scores = low_resolution_pairs(low, Pairs(chosen, rejected, image_index=index), Score())
        return torch.autograd.grad((scores.margin + scores.chosen).sum(), logits)[0]

    torch.use_deterministic_algorithms(True)
    first = grad()
    assert all(torch.equal(first, grad()) for _ in range(3))


def test_scores_of_bands_are_summed(monkeypatch):
    low = LowResolution(torch.randn(2, 3, 4, 5), (17, 20), (15, 19))
    seen = []

    def score(given, pixels):
        seen.append(pixels)
        return given[0].sum((1, 2)) - given[1].sum((1, 2))

    for least, numbers, rows in ((1, 200, 1), (8, 200, 8), (1, 2 * 3 * 20 * 4, 4)):
        monkeypatch.setattr(low_resolution, "LEAST_ROWS", least)
        seen.clear()
        found = sum_of_bands(score, low, replace(low, logits=low.logits * 2), numbers=numbers)
        torch.testing.assert_close(found, -upsampled(low).sum((1, 2, 3)), rtol=1e-5, atol=1e-4)
        firsts = range(0, 15, rows)
        assert [(some.start, some.stop) for some in seen] == [(r * 19, min(r + rows, 15) * 19) for r in firsts]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"chosen": torch.zeros(1, 8, 8, dtype=torch.uint8)}, r"chosen of shape \[pairs, \*\[8, 6\]\]"),
        ({"chosen": torch.full((1, 8, 6), 7, dtype=torch.uint8)}, "chosen has class 7 but the model predicts 3"),
    ],
)
def test_bad_masks_are_named(change, message):
    low = LowResolution(torch.randn(1, 3, 2, 2), (8, 8), (8, 6))
    masks = {"chosen": torch.ones(1, 8, 6, dtype=torch.uint8), "rejected": torch.zeros(1, 8, 6, dtype=torch.uint8)}
    with pytest.raises(ValueError, match=message):
        low_resolution_pairs(low, Pairs(**masks | change), Score())


def test_an_illegal_class_is_an_error_or_nan():
    low = LowResolution(torch.randn(1, 3, 2, 2), (8, 8), (8, 6))
    masks = torch.full((1, 8, 6), 7, dtype=torch.uint8), torch.zeros(1, 8, 6, dtype=torch.uint8)
    pairs = Pairs(*masks, index=pair_index(*masks))
    with pytest.raises(ValueError, match="chosen has class 7 but the model predicts 3"):
        low_resolution_pairs(low, pairs, Score())
    assert low_resolution_pairs(low, pairs, Score(), check=False).margin.isnan().all()


def test_impossible_arguments_are_refused():
    masks = torch.zeros(2, 1, 8, 6, dtype=torch.uint8)
    with pytest.raises(ValueError, match=r"image of at most \(8, 8\) pixels, the grid, but got \(9, 8\)"):
        LowResolution(torch.randn(1, 3, 2, 2), (8, 8), (9, 8))
    low = LowResolution(torch.randn(1, 3, 2, 2), (8, 8), (8, 6))
    broken = replace(low, logits=low.logits.index_fill(3, torch.tensor([0]), torch.nan))
    for index in (None, pair_index(*masks)):
        with pytest.raises(ValueError, match="Expected finite logits but 6 of 12 are NaN"):
            low_resolution_pairs(broken, Pairs(*masks, index=index), Score())
    other = pair_index(*torch.zeros(2, 1, 8, 8, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"1 pairs of 48 pixels, but got one of 1 pairs of 64 pixels"):
        low_resolution_pairs(low, Pairs(*masks, index=other), Score())
    with pytest.raises(ValueError, match=r"policy of the reference's shape, \(1, 2, 8, 6\), but got \(1, 3, 8, 6\)"):
        low_resolution_kl(low, replace(low, logits=torch.randn(1, 2, 2, 2)), Pairs(*masks))
    with pytest.raises(ValueError, match=r"logits of shape \[images, channels, height, width\] but got torch.int64"):
        LowResolution(torch.zeros(1, 1, 2, 2, dtype=torch.int64), (4, 4), (4, 4))


def test_a_second_derivative_is_refused():
    logits = torch.randn(1, 3, 2, 2, requires_grad=True)
    masks = torch.ones(1, 8, 8, dtype=torch.uint8), torch.zeros(1, 8, 8, dtype=torch.uint8)
    scores = low_resolution_pairs(LowResolution(logits, (8, 8), (8, 8)), Pairs(*masks), Score())
    (grad,) = torch.autograd.grad(scores.margin.square().sum(), logits, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()
    with pytest.raises(RuntimeError, match=r"a second .*upsample the logits"):
        torch.autograd.grad(scores.chosen.sum(), logits, create_graph=True)
