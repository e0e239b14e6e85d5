"""Metrics of pairs by hand and from logits in float64; the best of K masks over all subsets."""

import math
from itertools import combinations, product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import log_softmax

from segdpo.metrics.preferences import PairQuality, best_of, best_of_kl_bound, best_probabilities, kl_per_pixel
from segdpo.scores import PairScores, kl_to_reference, score_pairs


def scores(chosen, rejected):
    return PairScores(chosen=torch.tensor(chosen), rejected=torch.tensor(rejected))


def test_by_hand_with_weights():
    quality = PairQuality()
    policy, reference = scores([-1.0, -2.0, -4.0], [-3.0, -2.0, -3.0]), scores([-1.5, -1.0, -4.0], [-2.0, -2.0, -3.0])
    quality.update(policy, reference, weight=torch.tensor([2.0, 1.0, 1.0]))
    found = quality.compute()
    # h: 2 − .5, 0 − 1, −1 − −1; a tie is not won.
    assert found["accuracy"] == 2 / 4
    assert found["margin"] == (2 * 1.5 - 1) / 4
    assert found["chosen_gain"] == (2 * 0.5 - 1) / 4
    assert found["rejected_gain"] == -2 / 4
    assert found["pairs"] == 3
    assert found["kl"].isnan()


def test_without_a_reference_the_margin_is_the_policys():
    quality = PairQuality()
    quality.update(scores([-1.0, -2.0], [-3.0, -1.5]))
    found = quality.compute()
    assert (found["accuracy"], found["margin"]) == (0.5, 0.75)
    assert found["chosen_gain"].isnan()


def test_gains_and_margin_of_logits():
    logits = torch.randn(2, 3, 3, 8, 9)  # policy and reference, three images
    chosen, rejected = torch.randint(0, 3, (2, 3, 8, 9))
    quality = PairQuality()
    quality.update(*(score_pairs(one, chosen, rejected) for one in logits), kl_per_pixel=kl_per_pixel(*logits))
    found = quality.compute()
    log_p = log_softmax(logits.double().numpy(), axis=2)
    of = {name: np.take_along_axis(log_p, masks.numpy()[None, :, None], 2).mean((2, 3, 4))
          for name, masks in (("chosen", chosen), ("rejected", rejected))}  # fmt: skip
    gains = {name: value[0] - value[1] for name, value in of.items()}
    assert found["chosen_gain"].item() == pytest.approx(gains["chosen"].mean(), abs=1e-6)
    assert found["rejected_gain"].item() == pytest.approx(gains["rejected"].mean(), abs=1e-6)
    assert found["margin"].item() == pytest.approx((gains["chosen"] - gains["rejected"]).mean(), abs=1e-6)
    assert found["accuracy"].item() == pytest.approx((gains["chosen"] > gains["rejected"]).mean())
    assert found["kl"].item() == pytest.approx((np.exp(log_p[1]) * (log_p[1] - log_p[0])).sum(1).mean(), rel=1e-5)


@pytest.mark.parametrize("channels", [1, 4])
def test_kl_is_that_of_scores_where_masks_agree(channels):
    policy, reference = torch.randn(2, 3, channels, 7, 6)
    same, valid = torch.zeros(3, 7, 6, dtype=torch.uint8), torch.rand(3, 7, 6) > 0.4
    expected = kl_to_reference(policy, reference, same, same, valid=valid)
    torch.testing.assert_close(kl_per_pixel(policy, reference, valid), expected)
    torch.testing.assert_close(kl_per_pixel(policy, reference), kl_per_pixel(policy, reference, torch.ones_like(valid)))
    assert kl_per_pixel(policy, policy).abs().max() < 1e-7


def test_an_image_without_valid_pixels_does_not_count():
    policy, reference = torch.randn(2, 2, 1, 3, 3)
    valid = torch.ones(2, 3, 3, dtype=torch.bool)
    valid[0] = False
    found = kl_per_pixel(policy, reference, valid)
    assert found[0].isnan()
    quality = PairQuality()
    quality.update(scores([0.0, 0.0], [0.0, 0.0]), kl_per_pixel=found)
    assert quality.compute()["kl"] == found[1]


def test_two_processes_and_any_batch_size_say_the_same():
    chosen, rejected, weight, kl = torch.randn(4, 9)
    reference = PairScores(chosen=torch.zeros(9), rejected=torch.zeros(9))
    whole, ranks = PairQuality(), [PairQuality(), PairQuality()]
    whole.update(PairScores(chosen, rejected), reference, weight=weight.exp(), kl_per_pixel=kl)
    for part in (slice(0, 4), slice(4, 5), slice(5, 9)):
        ranks[part.start % 2].update(
            PairScores(chosen[part], rejected[part]),
            PairScores(chosen=reference.chosen[part], rejected=reference.rejected[part]),
            weight=weight[part].exp(),
            kl_per_pixel=kl[part],
        )
    ranks[0].merge_state(ranks[1])
    torch.testing.assert_close(ranks[0].compute(), whole.compute())


def test_errors_name_the_fix():
    with pytest.raises(ValueError, match=r"weight.*margin"):
        PairQuality().update(scores([0.0], [0.0]), weight=torch.ones(2))
    with pytest.raises(ValueError, match=r"policy_logits.*reference_logits"):
        kl_per_pixel(torch.zeros(1, 1, 2, 2), torch.zeros(1, 2, 2, 2))
    with pytest.raises(ValueError, match=r"valid \[B, \*spatial\]"):
        kl_per_pixel(torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 2, 2), torch.ones(2, 2, dtype=torch.bool))


def test_best_of_three_by_hand():
    """Of .1, .9, .5, two at a time: .9 wins two of three subsets, .5 the third."""
    rewards, quality = np.array([0.1, 0.9, 0.5]), np.array([10.0, 20.0, 60.0])
    np.testing.assert_allclose(best_probabilities(rewards, 2), [0, 2 / 3, 1 / 3])
    assert best_of(rewards, rewards, 2) == pytest.approx((0.9 + 0.9 + 0.5) / 3)
    # What the judge likes best is not what is best.
    assert best_of(quality, rewards, 2) == pytest.approx((20 + 20 + 60) / 3)
    assert best_of(quality, rewards, 3) == pytest.approx(20)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=7), st.data())
def test_best_of_equals_the_mean_over_all_subsets(levels, data):
    size = data.draw(st.integers(1, len(levels)))
    rewards = np.array(levels, float)
    found = best_probabilities(rewards, size)
    assert found.sum() == pytest.approx(1)
    assert (found @ rewards) == pytest.approx(np.mean([max(chosen) for chosen in combinations(levels, size)]))
    for level in set(levels):
        assert np.ptp(found[rewards == level]) < 1e-12, "equals share their chance"


def test_best_of_is_unbiased():
    """Rewards 0, 1, 3 with chances .5, .3, .2: every draw of five masks, weighed by its probability."""
    rewards, share = np.array([0.0, 1.0, 3.0]), np.array([0.5, 0.3, 0.2])
    for size in (1, 2, 4):
        expected = sum(
            share[list(drawn)].prod() * rewards[list(drawn)].max() for drawn in product(range(3), repeat=size)
        )
        found = sum(
            share[list(drawn)].prod() * best_of(rewards[list(drawn)], rewards[list(drawn)], size)
            for drawn in product(range(3), repeat=5)
        )
        assert found == pytest.approx(expected)


@pytest.mark.parametrize("size", [1, 2, 4, 8, 16])
def test_the_bound_holds_and_is_reached_where_nothing_ties(size):
    """n masks of equal chance: the best of K is number i with (i/n)^K − ((i − 1)/n)^K."""
    for count in (2, 10, 100_000):
        steps = (np.arange(count + 1) / count) ** size
        chosen = np.diff(steps)
        divergence = float((chosen * np.log(np.maximum(chosen, 1e-300) * count)).sum())
        assert divergence <= best_of_kl_bound(size) + 1e-9
    assert divergence == pytest.approx(best_of_kl_bound(size), abs=1e-3)
    assert best_of_kl_bound(size) == pytest.approx(math.log(size) - (size - 1) / size)


def test_masks_without_a_reward_and_too_few_masks():
    assert math.isnan(best_of(np.ones(2), np.array([0.5, np.nan]), 1))
    with pytest.raises(ValueError, match=r"1 to 2 .*3"):
        best_probabilities(np.ones(2), 3)
