"""score_pairs against scores worked out pixel by pixel in NumPy."""

import numpy as np
import numpy_scores
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import segdpo
from segdpo import Boundary, Score, kl_to_reference, score_pairs
from segdpo.scores import Pairs, pairs, score_pairs_by

# Random masks may hold 0 and 255 alone.
pytestmark = pytest.mark.filterwarnings("ignore:Expected class 1 in a mask")
QUANTITIES = ("log_likelihood", "log_odds")
REGIONS = ("image", "disagreement", "boundary")
REDUCTIONS = ("sum", "mean", "class_balanced")


@st.composite
def cases(draw):
    """Random networks and masks: 1 to 3 spatial dimensions, binary or not, ignore patterns, many pairs an image."""
    seed = draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    images, channels = draw(st.integers(1, 3)), draw(st.sampled_from([1, 2, 3, 5]))
    space = tuple(draw(st.lists(st.integers(1, 5), min_size=1, max_size=3)))
    shared = draw(st.booleans())
    pairs = draw(st.integers(1, 5)) if shared else images
    image_index = rng.integers(0, images, pairs) if shared else np.arange(images)
    classes = max(2, channels)
    chosen = rng.integers(0, classes, (pairs, *space)).astype(np.uint8)
    difference = draw(st.sampled_from(["none", "one pixel", "some", "all"]))
    share = {"none": 0.0, "one pixel": 0.0, "some": 0.3, "all": 1.0}[difference]
    other = (chosen + rng.integers(1, classes, chosen.shape)) % classes
    rejected = np.where(rng.random(chosen.shape) < share, other, chosen).astype(np.uint8)
    if difference == "one pixel":
        first = (slice(None), *(0 for _ in space))
        rejected[first] = (chosen[first] + 1) % classes
    for mask in (chosen, rejected):
        mask[rng.random(mask.shape) < draw(st.sampled_from([0.0, 0.2]))] = 255
    valid = rng.random((images, *space)) >= draw(st.sampled_from([0.0, 0.3]))
    # One pixel of each pair stays valid: others are left out (test_given_masks.py).
    last = (slice(None), *(-1 for _ in space))
    valid[last], chosen[last], rejected[last] = True, 0, rng.integers(0, classes, pairs)
    logits = rng.normal(size=(images, channels, *space)) * draw(st.sampled_from([1.0, 8.0]))
    return logits, chosen, rejected, valid, image_index, shared


def both_ways(case, quantity, region, reduction, backend="auto"):
    logits, chosen, rejected, valid, image_index, shared = case
    expected = numpy_scores.pair_scores(logits, chosen, rejected, valid, image_index, quantity, region, reduction)
    scores = score_pairs(
        torch.from_numpy(logits),
        torch.from_numpy(chosen),
        torch.from_numpy(rejected),
        valid=torch.from_numpy(valid),
        image_index=torch.from_numpy(image_index) if shared else None,
        quantity=quantity,
        region=region,
        reduction=reduction,
        backend=backend,
    )
    return scores, expected


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("region", REGIONS)
@pytest.mark.parametrize("quantity", QUANTITIES)
@settings(max_examples=25, deadline=None)
@given(case=cases())
def test_scores_equal_numpy(case, quantity, region, reduction):
    scores, (chosen, rejected) = both_ways(case, quantity, region, reduction)
    np.testing.assert_allclose(scores.chosen.numpy(), chosen, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(scores.rejected.numpy(), rejected, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(scores.margin.numpy(), chosen - rejected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("quantity", QUANTITIES)
@settings(max_examples=25, deadline=None)
@given(case=cases())
def test_sparse_gradient_equals_that_of_the_plain_path(case, quantity, reduction):
    gradients = []
    for backend in ("auto", "reference"):
        logits = torch.from_numpy(case[0]).requires_grad_()
        scores = score_pairs(
            logits,
            torch.from_numpy(case[1]),
            torch.from_numpy(case[2]),
            valid=torch.from_numpy(case[3]),
            image_index=torch.from_numpy(case[4]) if case[5] else None,
            quantity=quantity,
            reduction=reduction,
            backend=backend,
        )
        (scores.margin * torch.arange(1.0, len(scores.margin) + 1)).sum().backward()
        gradients.append(logits.grad)
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("channels", [1, 4])
@pytest.mark.parametrize("quantity", QUANTITIES)
def test_agreeing_pixels_get_exactly_zero_gradient(channels, quantity):
    logits = torch.randn(2, channels, 16, 16, requires_grad=True)
    chosen = torch.randint(0, max(2, channels), (2, 16, 16))
    rejected = chosen.clone()
    rejected[:, 3:6, 4:9] = (chosen[:, 3:6, 4:9] + 1) % max(2, channels)
    score_pairs(logits, chosen, rejected, quantity=quantity, reduction="sum").margin.sum().backward()
    differs = (chosen != rejected)[:, None].expand_as(logits)
    assert (logits.grad[~differs] == 0).all()
    assert logits.grad.movedim(1, -1)[chosen != rejected].abs().sum(-1).gt(0).all()


def test_a_large_margin_keeps_its_digits():
    """DESIGN section 3, fact 1: at 1024², summed, two fp32 sums lose much of a nat; the identity loses almost none.

    Both masks are wrong nearly everywhere in the same way, so each score is some −10⁷ nats and their difference small.
    """
    logits = torch.randn(1, 2, 1024, 1024) * 10
    chosen = torch.randint(0, 2, (1, 1024, 1024), dtype=torch.uint8)
    rejected = chosen.clone()
    rejected[:, :32, :32] = 1 - rejected[:, :32, :32]
    z = logits.double().numpy()[0]
    first = chosen.numpy()[0].astype(int)[:32, :32]
    patch = z[:, :32, :32]
    exact = (np.where(first == 1, patch[1] - patch[0], patch[0] - patch[1])).sum()

    scores = score_pairs(logits, chosen, rejected, reduction="sum")
    ours = abs(scores.margin.item() - exact)
    log_p = logits.log_softmax(1)
    sums = [log_p.gather(1, mask[:, None].long()).sum().item() for mask in (chosen, rejected)]
    naive = abs(np.float32(sums[0]) - np.float32(sums[1]) - exact)
    assert ours < 1e-2
    assert naive > 10 * ours


def test_margin_alone_saves_no_logits():
    """Whatever autograd keeps for the backward is smaller than the logits by far."""
    logits = torch.randn(2, 8, 64, 64, requires_grad=True)
    chosen = torch.randint(0, 8, (2, 64, 64), dtype=torch.uint8)
    rejected = chosen.clone()
    rejected[:, :8, :8] = (chosen[:, :8, :8] + 1) % 8
    kept = {}
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.setdefault(t.data_ptr(), t), lambda t: t):
        score_pairs(logits, chosen, rejected).margin.sum().backward()
    assert kept
    masks = {chosen.data_ptr(), rejected.data_ptr()}
    floating = [t for t in kept.values() if t.is_floating_point()]
    assert sum(t.numel() for t in floating) <= 2 * 2 * 64
    total = sum(t.numel() * t.element_size() for pointer, t in kept.items() if pointer not in masks)
    assert total < 0.1 * logits.numel() * logits.element_size()


def test_chosen_is_computed_when_first_read(monkeypatch):
    calls = []
    whole = pairs.chosen_score
    monkeypatch.setattr(pairs, "chosen_score", lambda *args: calls.append(1) or whole(*args))
    scores = score_pairs(torch.randn(1, 3, 4, 4), torch.zeros(1, 4, 4).byte(), torch.ones(1, 4, 4).byte())
    assert "not computed yet" in repr(scores)
    assert not calls
    assert scores.rejected.equal(scores.chosen - scores.margin)
    assert len(calls) == 1


@pytest.mark.parametrize("layout", ["channels_last", "transposed", "expanded", "sliced"])
@pytest.mark.parametrize("channels", [1, 3])
def test_any_memory_layout_gives_the_same_numbers(layout, channels):
    plain = torch.randn(2, channels, 6, 5)
    if layout == "expanded":
        plain = plain[:1].expand(2, -1, -1, -1).contiguous()
    strange = {
        "channels_last": lambda: plain.clone(memory_format=torch.channels_last),
        "transposed": lambda: plain.transpose(2, 3).contiguous().transpose(2, 3),
        "expanded": lambda: plain[:1].clone().expand(2, -1, -1, -1),
        "sliced": lambda: torch.stack([plain, plain], -1).flatten(3)[..., ::2],
    }[layout]()
    chosen, rejected = torch.randint(0, max(2, channels), (2, 2, 6, 5))
    results = []
    for logits in (plain, strange):
        logits = logits.detach().requires_grad_()
        scores = score_pairs(logits, chosen, rejected)
        (grad,) = torch.autograd.grad((scores.margin * torch.tensor([1.0, 2.0])).sum(), logits)
        results.append((scores.margin, scores.chosen, grad))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("channels", [1, 4])
@pytest.mark.parametrize("quantity", QUANTITIES)
def test_huge_half_precision_logits_stay_finite(dtype, channels, quantity):
    logits = (torch.randn(2, channels, 8, 8).sign() * 1e4).to(dtype).requires_grad_()
    chosen, rejected = torch.randint(0, max(2, channels), (2, 2, 8, 8))
    scores = score_pairs(logits, chosen, rejected, quantity=quantity)
    for score in (scores.chosen, scores.rejected, scores.margin):
        assert score.dtype == torch.float32
        assert score.isfinite().all()
    (scores.chosen + scores.margin).sum().backward()
    assert logits.grad.dtype == dtype
    assert logits.grad.isfinite().all()


def test_many_pairs_add_up_in_one_image_even_in_bf16():
    """In bf16, 1 + 1/512 is 1: gradients of 28 pairs that meet in a pixel must be added in fp32."""
    logits = torch.zeros(1, 1, 1, 2, dtype=torch.bfloat16, requires_grad=True)
    pairs = 512
    chosen = torch.ones(pairs, 1, 2).byte()
    rejected = torch.zeros(pairs, 1, 2).byte()
    index = torch.zeros(pairs, dtype=torch.int64)
    margin = score_pairs(logits, chosen, rejected, image_index=index, reduction="sum").margin
    (margin * torch.cat([torch.ones(1), torch.full((pairs - 1,), 1 / 512)])).sum().backward()
    assert logits.grad.flatten().tolist() == pytest.approx([2.0, 2.0], rel=0.01)


def test_binary_log_odds_on_the_disagreement_are_opposite():
    """DESIGN section 3, fact 4."""
    logits, (chosen, rejected) = torch.randn(3, 1, 8, 8), torch.randint(0, 2, (2, 3, 8, 8))
    scores = score_pairs(logits, chosen, rejected, quantity="log_odds", region="disagreement")
    torch.testing.assert_close(scores.rejected, -scores.chosen)


def test_permuting_pairs_permutes_scores():
    logits = torch.randn(2, 3, 6, 6)
    chosen, rejected = torch.randint(0, 3, (2, 5, 6, 6))
    index, order = torch.tensor([0, 1, 1, 0, 1]), torch.tensor([3, 0, 4, 1, 2])
    before = score_pairs(logits, chosen, rejected, image_index=index)
    after = score_pairs(logits, chosen[order], rejected[order], image_index=index[order])
    torch.testing.assert_close(after.margin, before.margin[order])
    torch.testing.assert_close(after.chosen, before.chosen[order])


def test_equal_masks_have_margin_and_gradient_zero():
    logits = torch.randn(1, 3, 5, 5, requires_grad=True)
    mask = torch.randint(0, 3, (1, 5, 5))
    for region in REGIONS:
        margin = score_pairs(logits, mask, mask, region=region).margin
        assert margin.tolist() == [0.0]
        (grad,) = torch.autograd.grad(margin.sum(), logits)
        assert (grad == 0).all()


def test_a_given_region_and_a_region_function():
    logits, (chosen, rejected) = torch.randn(2, 3, 6, 6), torch.randint(0, 3, (2, 2, 6, 6))
    left = torch.zeros(2, 6, 6, dtype=torch.bool)
    left[..., :3] = True
    expected = score_pairs(logits[..., :3], chosen[..., :3], rejected[..., :3]).chosen
    torch.testing.assert_close(score_pairs(logits, chosen, rejected, region=left).chosen, expected)
    torch.testing.assert_close(score_pairs(logits, chosen, rejected, region=lambda *_: left).chosen, expected)
    given = score_pairs_by([Score(region="given")], logits, Pairs(chosen, rejected, region_mask=left))
    torch.testing.assert_close(given[Score(region="given")].chosen, expected)


def test_boundary_widths_are_scores_of_their_own():
    assert Score(region=Boundary(3)) == Score(region=Boundary(3))
    assert len({Score(region=Boundary(3)), Score(region=Boundary(5)), Score(region=Boundary(3))}) == 2


@pytest.mark.parametrize("channels", [1, 4])
def test_kl_to_reference_is_the_mean_kl_where_masks_agree(channels):
    policy, reference = torch.randn(2, 2, channels, 5, 5, dtype=torch.float64)
    chosen, rejected = torch.randint(0, max(2, channels), (2, 3, 5, 5))
    index = torch.tensor([1, 0, 1])
    family = torch.distributions.Bernoulli if channels == 1 else torch.distributions.Categorical
    logits = [z[:, 0] if channels == 1 else z.movedim(1, -1) for z in (reference, policy)]
    kl = torch.distributions.kl_divergence(*(family(logits=z) for z in logits))
    expected = [kl[image][a == b].mean() for image, a, b in zip(index, chosen, rejected, strict=True)]
    found = kl_to_reference(policy, reference, chosen, rejected, image_index=index)
    torch.testing.assert_close(found, torch.stack(expected))
    assert kl_to_reference(policy, policy, chosen, rejected, image_index=index).tolist() == pytest.approx([0.0] * 3)
    with pytest.warns(DeprecationWarning, match="kl_to_reference"):
        assert segdpo.score_drift(policy, reference, chosen, rejected, image_index=index).equal(found)


def test_pair_scores_of_given_numbers():
    scores = segdpo.PairScores(chosen=torch.tensor([-1.0, -2.0]), rejected=torch.tensor([-3.0, -1.0]))
    assert scores.margin.tolist() == [2.0, -1.0]
    assert scores.ranked.tolist() == [[2.0, 0.0], [-1.0, 0.0]]
    assert scores.rejected.tolist() == [-3.0, -1.0]
    lazy = segdpo.PairScores(chosen=lambda: torch.ones(2, requires_grad=True), margin=torch.zeros(2))
    assert not lazy.detach().chosen.requires_grad


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int8, torch.int32, torch.int64])
@pytest.mark.parametrize("channels", [1, 2])
def test_masks_and_indices_of_any_integer_type(channels, dtype):
    logits, masks = torch.randn(2, channels, 5, 5), torch.randint(0, 2, (2, 3, 5, 5))
    index = torch.tensor([1, 0, 1])
    expected = score_pairs(logits, *masks, image_index=index)
    scores = score_pairs(logits, *masks.to(dtype), image_index=index.int())
    assert scores.chosen.equal(expected.chosen)
    assert scores.margin.equal(expected.margin)
    assert kl_to_reference(logits, logits + 1, *masks.to(dtype), image_index=index.int()).isfinite().all()
