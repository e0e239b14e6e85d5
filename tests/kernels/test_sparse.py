"""The sparse kernel against backend="reference" in float64: values, gradients, memory, no waiting for the device."""

import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from segdpo import Anchor, Boundary, PreferenceLoss, Score, mask_index, pair_index, score_masks, score_pairs
from segdpo.kernels import planes
from segdpo.losses import anchors, objectives
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
    keep = (slice(None), *(0 for _ in space))  # a pair without a valid pixel is left out
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


WAITS = ("nonzero", "_local_scalar_dense", "item", "masked_select", "unique", "equal", "is_nonzero")


class NoWaiting(TorchDispatchMode):
    """Refuses operations that on a GPU wait for the device."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        assert name not in WAITS, f"{name} waits for the device"
        if name == "index":  # a bool index is a nonzero in disguise
            assert all(index is None or index.dtype != torch.bool for index in args[1])
        return func(*args, **(kwargs or {}))


def pair_case(channels=4, images=2, size=8, pairs=None):
    logits = torch.randn(images, channels, size, size, requires_grad=True)
    chosen = torch.randint(0, max(2, channels), (pairs or images, size, size), dtype=torch.uint8)
    rejected = chosen.clone()
    rejected[:, :3, :4] = (chosen[:, :3, :4] + 1) % max(2, channels)
    return logits, chosen, rejected


@pytest.mark.parametrize("channels", [1, 4])
@pytest.mark.parametrize("region", ["image", "disagreement"])
@pytest.mark.parametrize("wants", [False, True])
def test_nothing_waits_for_the_device(channels, region, wants):
    logits, chosen, rejected = pair_case(channels)
    score = Score(region=region)
    pairs, options = Pairs(chosen, rejected, index=pair_index(chosen, rejected)), {"check": False}
    with NoWaiting():
        wanted = [score] * wants
        found = score_pairs_by([score, Score(reduction="sum")], logits, pairs, wants_chosen=wanted, **options)[score]
        (found.margin + found.chosen if wants else found.margin).sum().backward()
    assert logits.grad.abs().sum() > 0


def test_no_whole_mask_is_read_for_a_margin():
    """With an index, masks may hold anything: margins over image and disagreement are made from the index alone."""
    logits, chosen, rejected = pair_case()
    index = pair_index(chosen, rejected)
    nonsense = torch.full_like(chosen, 77)
    for region in ("image", "disagreement"):
        for reduction in ("sum", "mean"):
            what = {"region": region, "reduction": reduction}
            ours = score_pairs(logits, nonsense, nonsense, index=index, **what).margin
            torch.testing.assert_close(ours, score_pairs(logits, chosen, rejected, backend="reference", **what).margin)


def peak_of(step):
    """Return the most bytes that the step had allocated at once, by the allocator's own events."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        step()
    now = most = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            now += event.nbytes()
            most = max(most, now)
    return most


@pytest.mark.parametrize(("anchored", "limit"), [(False, 1.1), (True, 1.2)])
def test_peak_memory_inside_the_loss(anchored, limit):
    logits, chosen, rejected = pair_case(channels=20, images=6, size=256)
    rejected[:, :80, :80] = (chosen[:, :80, :80] + 1) % 20  # a tenth of the pixels
    index = pair_index(chosen, rejected)
    margin, whole = Score(region="disagreement"), Score()

    def step():
        pairs = Pairs(chosen, rejected, index=index)
        found = score_pairs_by([margin, whole], logits, pairs, wants_chosen=[whole] * anchored)
        (found[margin].margin + (found[whole].chosen if anchored else 0)).sum().backward()

    assert peak_of(step) <= limit * logits.numel() * logits.element_size()


def test_a_chosen_score_read_after_the_logits_were_overwritten_is_an_error():
    leaf, chosen, rejected = pair_case()
    logits = leaf * 1
    found = score_pairs(logits, chosen, rejected)
    logits.add_(1)
    with pytest.raises(RuntimeError, match=r"in-place operation .* \.chosen"):
        found.chosen  # noqa: B018


def test_a_second_derivative_is_refused_in_words():
    logits, chosen, rejected = pair_case()
    for backend in ("sparse", "reference"):
        scores = score_pairs(logits, chosen, rejected, backend=backend)
        total = scores.margin.square().sum() + scores.chosen.square().sum()
        (grad,) = torch.autograd.grad(total, logits, create_graph=True)
        if backend == "reference":
            torch.autograd.grad(grad.square().sum(), logits)
        else:
            with pytest.raises(RuntimeError, match=r"a second .* backend=.reference."):
                torch.autograd.grad(grad.square().sum(), logits)


def test_gradcheck():
    logits, chosen, rejected = pair_case(3, size=4)
    image_index, logits = torch.tensor([1, 1]), logits.detach().double().requires_grad_()

    def function(z):
        pairs = Pairs(chosen, rejected, image_index=image_index)
        found = score_pairs_by([Score()], z, pairs, wants_chosen=[Score()])
        return found[Score()].margin, found[Score()].chosen

    assert torch.autograd.gradcheck(function, logits)


@pytest.mark.parametrize("check", [None, False])
def test_a_class_that_the_logits_do_not_have_is_never_another_ones_number(check):
    logits, chosen, rejected = pair_case(3)
    chosen[1, 0, 0] = 9
    index = pair_index(chosen, rejected)
    if check is None:
        with pytest.raises(ValueError, match="chosen has class 9 but the model predicts 3 classes"):
            score_pairs(logits, chosen, rejected, index=index)
        return
    assert score_pairs(logits, chosen, rejected, index=index, check=False).margin.isnan().any()
    binary = torch.randn(2, 1, 8, 8)
    chosen[1, 5, 5] = rejected[1, 5, 5] = 3  # where the masks agree, so that only the chosen score meets it
    index = pair_index(chosen.clamp(max=1), rejected.clamp(max=1))
    with pytest.raises(ValueError, match="classes from 0 to 1 but got masks from 0 to 9"):
        score_pairs(binary, chosen, rejected, index=index, check=False).chosen  # noqa: B018


def test_logits_that_are_no_numbers_are_named_even_with_an_index():
    logits, chosen, rejected = pair_case()
    logits.data[1, :, 1, 1] = float("nan")
    with pytest.raises(ValueError, match="finite logits but 4 of 512 are NaN or infinite, the first in image 1"):
        score_pairs(logits, chosen, rejected, index=pair_index(chosen, rejected))


def test_an_index_of_other_masks_is_refused():
    logits, chosen, rejected = pair_case()
    for other in (pair_index(chosen[:1], rejected[:1]), pair_index(chosen[..., :4], rejected[..., :4])):
        with pytest.raises(ValueError, match=re.escape("an index of these masks, 2 pairs of 64 pixels, but got one")):
            score_pairs(logits, chosen, rejected, index=other)
    with pytest.raises(ValueError, match="index on the device of the logits, cpu, but it is on meta"):
        score_pairs(logits, chosen, rejected, index=pair_index(chosen, rejected).to("meta"))
    index = mask_index(torch.cat([chosen, rejected]), torch.tensor([[0, 2]]), torch.tensor([0, 1, 0, 1]))
    pairs = torch.tensor([[0, 2], [1, 3]])
    with pytest.raises(ValueError, match="an index of these 2 pairs but got one of 1"):
        score_masks(logits, torch.cat([chosen, rejected]), pairs, torch.tensor([0, 1, 0, 1]), index=index)


@pytest.mark.parametrize("scale", [1.0, 1024.0])
def test_a_step_in_fp16_with_a_grad_scaler(scale):
    torch.manual_seed(1)
    network = torch.nn.Conv2d(2, 3, 3, padding=1)
    scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    _, chosen, rejected = pair_case(3)
    images = torch.randn(2, 2, 8, 8)
    loss = PreferenceLoss(objectives.sft, anchors={"nll": Anchor(1.0, anchors.nll, score=Score(reduction="sum"))})
    with torch.autocast("cpu", torch.float16):
        total = loss.on_logits(network(images), None, chosen, rejected, index=pair_index(chosen, rejected)).total
    scaler.scale(total).backward()
    optimizer = torch.optim.SGD(network.parameters(), 0.1)
    scaler.unscale_(optimizer)
    ours = network.weight.grad.clone()
    network.zero_grad()
    loss.on_logits(network(images), None, chosen, rejected, backend="reference").total.backward()
    torch.testing.assert_close(ours, network.weight.grad, rtol=2e-2, atol=2e-1)
