import numpy as np
import pytest

from segdpo.preferences.staple import staple


def rate(truth, confusion, rng):
    """Draw a rater's mask of the truth, pixel by pixel, from P(says column | truth is row)."""
    cumulative = np.cumsum(confusion, axis=1)[truth]
    return (rng.random(truth.shape)[..., None] > cumulative).sum(-1).astype(np.uint8)


def plain_binary_em(votes, steps):
    """STAPLE as in the paper's equations, one pixel after another: votes [K, N] of 0 and 1."""
    prior = votes.mean()
    sensitivity, specificity = [0.99] * len(votes), [0.99] * len(votes)
    for step in range(steps + 1):
        weights = []
        for pixel in votes.T:
            one, zero = prior, 1 - prior
            for vote, p, q in zip(pixel, sensitivity, specificity, strict=True):
                one *= p if vote else 1 - p
                zero *= 1 - q if vote else q
            weights.append(one / (one + zero))
        weights = np.array(weights)
        if step < steps:
            sensitivity = [float((weights * mine).sum() / weights.sum()) for mine in votes]
            specificity = [float(((1 - weights) * (1 - mine)).sum() / (1 - weights).sum()) for mine in votes]
    return weights, sensitivity, specificity


@pytest.mark.parametrize("steps", [1, 2, 7])
def test_binary_is_the_papers_em_step_by_step(steps):
    rng = np.random.default_rng(0)
    votes = (rng.random((4, 30)) < 0.4).astype(np.uint8)
    weights, sensitivity, specificity = plain_binary_em(votes, steps)
    found = staple(votes.reshape(4, 5, 6), iterations=steps, tolerance=0)
    assert found.iterations == steps
    np.testing.assert_allclose(found.probability[1].ravel(), weights, atol=1e-12)
    np.testing.assert_allclose(found.confusion[:, 1, 1], sensitivity, atol=1e-12)
    np.testing.assert_allclose(found.confusion[:, 0, 0], specificity, atol=1e-12)


def test_finds_the_skill_of_simulated_raters():
    rng = np.random.default_rng(1)
    truth = (rng.random((120, 120)) < 0.3).astype(np.int64)
    skills = [(0.95, 0.9), (0.8, 0.97), (0.7, 0.85), (0.9, 0.6), (0.6, 0.95)]
    masks = np.stack([rate(truth, np.array([[q, 1 - q], [1 - p, p]]), rng) for p, q in skills])
    found = staple(masks)
    np.testing.assert_allclose(found.confusion[:, 1, 1], [p for p, _ in skills], atol=0.02)
    np.testing.assert_allclose(found.confusion[:, 0, 0], [q for _, q in skills], atol=0.02)
    wrong = (found.labels != truth).mean()
    assert wrong < min((mask != truth).mean() for mask in masks)
    assert wrong < ((masks.mean(0) > 0.5) != truth).mean()  # and better than the majority


def test_finds_the_confusions_between_several_classes():
    rng = np.random.default_rng(2)
    truth = rng.choice(3, (150, 150), p=[0.5, 0.3, 0.2])
    confusions = np.array(
        [
            [[0.9, 0.1, 0.0], [0.05, 0.9, 0.05], [0.1, 0.1, 0.8]],
            [[0.7, 0.1, 0.2], [0.2, 0.8, 0.0], [0.0, 0.05, 0.95]],
            [[0.8, 0.1, 0.1], [0.1, 0.6, 0.3], [0.1, 0.0, 0.9]],
            [[0.95, 0.05, 0.0], [0.3, 0.7, 0.0], [0.3, 0.0, 0.7]],
        ]
    )
    shown = np.array([4, 0, 9], np.uint8)  # the ids need not count from 0, nor rise with the truth's
    masks = np.stack([shown[rate(truth, confusion, rng)] for confusion in confusions])
    found = staple(masks)
    order = np.argsort(shown)
    assert found.classes == (0, 4, 9)
    np.testing.assert_allclose(found.confusion, confusions[:, order][:, :, order], atol=0.03)
    np.testing.assert_allclose(found.probability.sum(0), 1)


def test_an_ignored_pixel_is_no_vote():
    rng = np.random.default_rng(3)
    masks = rng.integers(0, 2, (3, 10, 10)).astype(np.uint8)
    silent = np.full((1, 10, 10), 255, np.uint8)
    alone, joined = staple(masks), staple(np.concatenate([masks, silent]))
    np.testing.assert_allclose(joined.probability, alone.probability)
    masks[:, 0, 0] = 255
    assert staple(masks).labels[0, 0] == 255
    with pytest.raises(ValueError, match="at least one pixel with a vote"):
        staple(silent)


def test_raters_of_one_mind():
    for disputed in (False, True):
        masks = np.zeros((3, 4, 4), np.uint8)
        assert (staple(masks, disputed=disputed).labels == 0).all()
        masks[:, 1:3, 1:3] = 7
        found = staple(masks, disputed=disputed)
        assert (found.labels == masks[0]).all()
        np.testing.assert_allclose(found.confusion, np.repeat(np.eye(2)[None], 3, 0), atol=1e-12)


def test_disputed_pixels_alone_do_not_feel_the_background():
    rng = np.random.default_rng(4)
    masks = rng.choice([0, 1, 255], (5, 12, 12), p=[0.5, 0.4, 0.1]).astype(np.uint8)
    wide = np.pad(masks, ((0, 0), (0, 60), (0, 60)))
    near, far = staple(masks, disputed=True), staple(wide, disputed=True)
    np.testing.assert_array_equal(far.labels[:12, :12], near.labels)
    np.testing.assert_allclose(far.probability[:, :12, :12], near.probability, atol=1e-12)
    np.testing.assert_allclose(far.confusion, near.confusion, atol=1e-12)
    assert (far.probability[0, 12:] == 1).all()
    assert not np.allclose(staple(wide).confusion, staple(masks).confusion, atol=1e-3)


def test_disputed_pixels_alone_are_the_em_of_those_pixels():
    rng = np.random.default_rng(5)
    votes = (rng.random((4, 40)) < 0.4).astype(np.uint8)
    differ = votes.min(0) != votes.max(0)
    weights, sensitivity, _ = plain_binary_em(votes[:, differ], 6)
    found = staple(votes.reshape(4, 5, 8), disputed=True, iterations=6, tolerance=0)
    np.testing.assert_allclose(found.probability[1].ravel()[differ], weights, atol=1e-12)
    np.testing.assert_allclose(found.confusion[:, 1, 1], sensitivity, atol=1e-12)
    np.testing.assert_array_equal(found.labels.ravel()[~differ], votes[0, ~differ])
