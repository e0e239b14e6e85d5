"""All scores of a loss in one pass against backend="reference" in float64: values and gradients."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from segdpo import Boundary, Score, pair_index, score_pairs
from segdpo.kernels import planes
from segdpo.scores import Pairs, score_pairs_by

# What the rounding of a gradient to its dtype may lose.
TOLERANCE = {torch.float64: 1e-9, torch.float32: 2e-5, torch.bfloat16: 2e-2, torch.float16: 4e-3}
REGIONS = ("image", "disagreement", "boundary", Boundary(1))
scores_of_a_loss = st.lists(
    st.builds(
        Score,
        st.sampled_from(["log_likelihood", "log_odds"]),
        st.sampled_from(REGIONS),
        st.sampled_from(["sum", "mean", "class_balanced"]),
    ),
    min_size=1,
    max_size=3,
    unique=True,
)


def layout_of(logits, layout):
    if layout == "channels_last":
        return logits.movedim(1, -1).contiguous().movedim(-1, 1)
    if layout == "sliced":
        return torch.stack([logits, logits], -1)[..., 0]
    return logits


@st.composite
def cases(draw):
    """Logits and masks: 2-D and 3-D, with and without ignored pixels, one or several pairs an image."""
    torch.manual_seed(draw(st.integers(0, 2**32)))
    images, channels = draw(st.integers(1, 3)), draw(st.sampled_from([1, 2, 3, 6]))
    space, classes = draw(st.sampled_from([(5, 7), (1, 33), (3, 4, 5)])), max(2, channels)
    index = torch.randint(0, images, (draw(st.integers(1, 5)),)) if draw(st.booleans()) else None
    pairs = images if index is None else len(index)
    chosen = torch.randint(0, classes, (pairs, *space))
    share = draw(st.sampled_from([0.0, 0.2, 1.0]))
    rejected = torch.where(torch.rand(chosen.shape) < share, (chosen + 1) % classes, chosen)
    for mask in (chosen, rejected):
        mask[torch.rand(mask.shape) < draw(st.sampled_from([0.0, 0.0, 0.3]))] = 255
    valid = torch.rand(images, *space) >= 0.2 if draw(st.booleans()) else None
    keep = (slice(None), *(0 for _ in space))  # a pair without a pixel to judge is an error
    chosen[keep], rejected[keep] = 0, 1
    if valid is not None:
        valid[keep] = True
    as_ids = draw(st.sampled_from([torch.uint8, torch.int64]))
    logits = torch.randn(images, channels, *space, dtype=torch.float64) * draw(st.sampled_from([1.0, 6.0]))
    return logits, chosen.to(as_ids), rejected.to(as_ids), {"valid": valid, "image_index": index}


def total_of(found, wanted):
    """Every number of every score with a slope of its own, so that no two mistakes cancel."""
    parts = [pairs.margin for pairs in found.values()] + [found[score].chosen for score in wanted]
    return sum((torch.linspace(0.3, 1.7, len(part)) * (k + 1) * part).sum() for k, part in enumerate(parts))


@settings(max_examples=120, deadline=None)
@given(
    case=cases(),
    scores=scores_of_a_loss,
    dtype=st.sampled_from(list(TOLERANCE)),
    layout=st.sampled_from(["plain", "channels_last", "sliced"]),
    given_index=st.booleans(),
    data=st.data(),
)
def test_the_numbers_and_gradients_of_the_reference(case, scores, dtype, layout, given_index, data):
    logits, chosen, rejected, options = case
    wanted = data.draw(st.lists(st.sampled_from(scores), unique=True))
    ours = layout_of(logits.to(dtype), layout).requires_grad_()
    plain = ours.detach().double().requires_grad_()
    index = pair_index(chosen, rejected, **options) if given_index else None
    found = score_pairs_by(scores, ours, Pairs(chosen, rejected, index=index, **options), wants_chosen=wanted)
    expected = score_pairs_by(scores, plain, Pairs(chosen, rejected, **options), backend="reference")
    # Scores are fp32 at least whatever the logits are, which both sides have read as they are.
    close = {"rtol": 1e-9, "atol": 1e-9} if dtype == torch.float64 else {"rtol": 2e-5, "atol": 2e-4}
    for score in scores:
        torch.testing.assert_close(found[score].margin.double(), expected[score].margin, **close)
        torch.testing.assert_close(found[score].chosen.double(), expected[score].chosen, **close)
    total_of(found, wanted).backward()
    total_of(expected, wanted).backward()
    assert ours.grad.dtype == dtype
    torch.testing.assert_close(ours.grad.double(), plain.grad, rtol=TOLERANCE[dtype], atol=10 * TOLERANCE[dtype])


@pytest.mark.parametrize("channels", [1, 2, 5])
def test_chunks_of_pixels_are_the_whole(channels, monkeypatch):
    """More pixels than one chunk, the last of them shorter, two planes in one image."""
    monkeypatch.setattr(planes, "CHUNK", 1)  # the least chunk there is: 2048 pixels
    logits = torch.randn(2, channels, 5000, dtype=torch.float64, requires_grad=True)
    chosen, rejected = torch.randint(0, max(2, channels), (2, 3, 5000), dtype=torch.uint8)
    chosen[0, 100:300] = 255
    options = {"image_index": torch.tensor([1, 1, 0]), "reduction": "class_balanced"}
    results = []
    for backend in ("sparse", "reference"):
        scores = score_pairs(logits, chosen, rejected, backend=backend, **options)
        slope = torch.tensor([1.0, -2.0, 0.5])
        results.append((scores.chosen, torch.autograd.grad((scores.chosen * slope).sum(), logits)[0]))
    torch.testing.assert_close(*results)


def test_a_chosen_score_of_many_pixels_keeps_its_digits():
    """Summed over 1024², fp32 alone would lose tenths of a nat; what is left is the rounding of the sum itself."""
    logits = torch.randn(1, 2, 1024, 1024) * 0.01
    chosen, rejected = torch.randint(0, 2, (2, 1, 1024, 1024), dtype=torch.uint8)
    weight = torch.zeros(1024, 1024, dtype=torch.bool)
    weight[:, :100] = True
    ours = score_pairs(logits, chosen, rejected, region=weight[None], reduction="sum")
    log_p = logits.double().log_softmax(1).gather(1, chosen[:, None].long())[:, 0]
    assert abs(ours.chosen.double().item() - log_p[:, weight].sum().item()) < 1e-2


def test_one_gradient_tensor_for_two_scores():
    """dpo on the disagreement and an anchor on the image: one node over the logits, not two."""
    logits = torch.randn(2, 3, 6, 6, requires_grad=True)
    chosen, rejected = torch.randint(0, 3, (2, 2, 6, 6), dtype=torch.uint8)
    scores = [Score(region="disagreement"), Score()]
    found = score_pairs_by(scores, logits, Pairs(chosen, rejected), wants_chosen=[Score()])
    nodes = {nodes_named(found[scores[0]].margin, "_Sums"), nodes_named(found[scores[1]].chosen, "_Sums")}
    assert len(nodes) == 1


def nodes_named(tensor, name):
    """Return the functions of a name that a tensor comes from."""
    waiting, found = [tensor.grad_fn], set()
    while waiting:
        node = waiting.pop()
        if name in node.name():
            found.add(node)
        waiting += [after for after, _ in node.next_functions if after is not None]
    return frozenset(found)
