"""Rankings, and pairs that share masks: against whole scores, and against each pair by itself in float64."""

from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from segdpo import PreferenceLoss, Score, mask_index, score_pairs, score_ranking
from segdpo.losses import listwise, objectives
from segdpo.scores import MaskPairs, Pairs, score_masks_by, score_pairs_by


def ranking_case(masks: int, channels: int = 3):
    logits = torch.randn(2, channels, 6, 5, dtype=torch.float64, requires_grad=True)
    return logits, torch.randint(0, max(2, channels), (2, masks, 6, 5))


@pytest.mark.parametrize("quantity", ["log_likelihood", "log_odds"])
@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("channels", [1, 3])
def test_ranked_scores_are_whole_scores_up_to_a_constant(channels, reduction, quantity):
    logits, ranking = ranking_case(4, channels)
    scores = score_ranking(logits, ranking, quantity=quantity, reduction=reduction)
    whole = torch.stack(
        [
            score_pairs(logits, mask, mask, quantity=quantity, reduction=reduction, backend="reference").chosen
            for mask in ranking.unbind(1)
        ],
        dim=1,
    )
    torch.testing.assert_close(scores.ranked, whole - whole[:, -1:])
    torch.testing.assert_close(scores.chosen, whole[:, 0])
    torch.testing.assert_close(scores.rejected, whole[:, -1])


def test_weights_come_from_the_best_mask():
    """class_balanced: the pixel weights of the best mask serve all, so two masks are scored as in score_pairs."""
    logits, ranking = ranking_case(2)
    ranked = score_ranking(logits, ranking, reduction="class_balanced", region="disagreement")
    pair = score_pairs(logits, *ranking.unbind(1), reduction="class_balanced", region="disagreement")
    torch.testing.assert_close(ranked.margin, pair.margin)
    torch.testing.assert_close(ranked.ranked, pair.ranked)


def test_disagreement_is_where_any_mask_differs():
    logits = torch.zeros(1, 1, 1, 4)
    ranking = torch.tensor([[[[1, 0, 0, 0]], [[0, 1, 0, 0]], [[0, 0, 0, 0]]]])
    # Two pixels in dispute, each log ½: the mean is log ½ whatever the number of pixels, the sum counts them.
    assert score_ranking(logits, ranking, region="disagreement", reduction="sum").chosen.item() == pytest.approx(
        2 * torch.tensor(0.5).log().item()
    )


def test_plackett_luce_from_logits_equals_brute_force():
    policy, ranking = ranking_case(4)
    reference = torch.randn_like(policy)
    loss = PreferenceLoss(partial(listwise.plackett_luce, beta=0.7))
    total = loss(score_ranking(policy, ranking), score_ranking(reference, ranking)).total

    def whole(logits: torch.Tensor) -> torch.Tensor:
        log_p = logits.log_softmax(1)
        return torch.stack([log_p.gather(1, mask[:, None]).mean((1, 2, 3)) for mask in ranking.unbind(1)], 1)

    strength = (0.7 * (whole(policy) - whole(reference))).exp()
    expected = 0.0
    for position in range(4):
        expected = expected - (strength[:, position] / strength[:, position:].sum(1)).log()
    torch.testing.assert_close(total, expected.mean())
    ours, theirs = (torch.autograd.grad(value.mean(), policy, retain_graph=True)[0] for value in (total, expected))
    torch.testing.assert_close(ours, theirs)


def test_two_masks_are_dpo():
    policy, ranking = ranking_case(2)
    reference = torch.randn_like(policy)
    listed = PreferenceLoss(partial(listwise.plackett_luce, beta=2.0))
    paired = PreferenceLoss(partial(objectives.dpo, beta=2.0))
    torch.testing.assert_close(
        listed(score_ranking(policy, ranking), score_ranking(reference, ranking)).total,
        paired.on_logits(policy, reference, *ranking.unbind(1)).total,
    )


def test_rankings_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"ranking of shape \[lists, K, \*spatial\] with K of at least 2"):
        score_ranking(torch.randn(1, 3, 4, 4), torch.zeros(1, 4, 4).byte())
    with pytest.raises(ValueError, match="K of at least 2"):
        score_ranking(torch.randn(1, 3, 4, 4), torch.zeros(1, 1, 4, 4).byte())


@st.composite
def cases(draw):
    """K masks of each of a few images, pairs at random; ignored pixels none, shared by an image's masks, or not."""
    torch.manual_seed(draw(st.integers(0, 2**32)))
    images, channels = draw(st.integers(1, 3)), draw(st.sampled_from([1, 2, 4]))
    image = torch.cat([torch.arange(images).repeat(2), torch.randint(0, images, (draw(st.integers(0, 6)),))])
    masks = torch.randint(0, max(2, channels), (len(image), *draw(st.sampled_from([(4, 5), (2, 3, 4)]))))
    ignored = torch.rand(masks.shape) < draw(st.sampled_from([0.0, 0.2]))
    if draw(st.booleans()):
        ignored = ignored[:images][image]
    ignored.flatten(1)[:, 0] = False
    masks[ignored] = 255
    valid = torch.rand(images, *masks.shape[1:]) < 0.8 if draw(st.booleans()) else None
    if valid is not None:
        valid.flatten(1)[:, 0] = True
    every = [(a, b) for a in range(len(image)) for b in range(len(image)) if a != b and image[a] == image[b]]
    pairs = torch.tensor(draw(st.lists(st.sampled_from(every), min_size=1, max_size=12)))
    logits = torch.randn(images, channels, *masks.shape[1:], dtype=torch.float64, requires_grad=True)
    return logits, masks.to(draw(st.sampled_from([torch.uint8, torch.int64]))), pairs, image, valid


scores = st.builds(
    Score,
    st.sampled_from(["log_likelihood", "log_odds"]),
    st.sampled_from(["image", "disagreement", "boundary"]),
    st.sampled_from(["sum", "mean", "class_balanced"]),
)


@settings(max_examples=100, deadline=None)
@given(
    case=cases(),
    measured=st.lists(scores, min_size=1, max_size=2, unique=True),
    eager=st.booleans(),
    made=st.booleans(),
)
def test_pairs_that_share_masks_equal_pairs_scored_alone(case, measured, eager, made):
    logits, masks, pairs, image, valid = case
    index = mask_index(masks, pairs, image, valid) if made else None
    wants = measured if eager else []
    ours = score_masks_by(measured, logits, MaskPairs(masks, pairs, image, valid, index), wants_chosen=wants)
    one_by_one = Pairs(masks[pairs[:, 0]], masks[pairs[:, 1]], valid, image[pairs[:, 0]])
    plain = score_pairs_by(measured, logits, one_by_one, backend="reference")
    slopes = torch.rand(2, len(pairs), dtype=torch.float64)
    gradients = []
    for found in (ours, plain):
        total = sum((slopes[0] * found[s].margin + slopes[1] * found[s].chosen).sum() for s in measured)
        gradients.append(torch.autograd.grad(total, logits)[0])
    for score in measured:
        torch.testing.assert_close(ours[score].margin, plain[score].margin, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(ours[score].chosen, plain[score].chosen, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-9)
