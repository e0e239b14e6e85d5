"""Errors name what was expected, what was got, and how to fix it."""

from functools import partial

import pytest
import torch

from segdpo import Anchor, PairScores, PreferenceLoss, Score, kl_to_reference, score_pairs
from segdpo.losses import anchors, objectives

LOGITS = torch.zeros(2, 3, 4, 4)
CHOSEN = torch.ones(2, 4, 4, dtype=torch.uint8)
REJECTED = torch.zeros(2, 4, 4, dtype=torch.uint8)
CLASS_7 = CHOSEN.clone().index_fill(1, torch.tensor(0), 7)
NAN = LOGITS.clone().index_fill(3, torch.tensor(1), float("nan"))
ALL = torch.ones(2, 4, 4, dtype=torch.bool)
NONE_IN_SECOND = ALL.clone().index_fill(0, torch.tensor(1), False)

SCORES = {
    "no channel dimension": ((LOGITS[:, 0], CHOSEN, REJECTED), {}, r"chosen of shape .*no channel dimension, add"),
    "no batch dimension": ((LOGITS[0, 0], CHOSEN, REJECTED), {}, r"logits of shape \[images, channels, \*spatial\]"),
    "integer logits": ((LOGITS.long(), CHOSEN, REJECTED), {}, "pass logits, not predicted classes"),
    "float masks": ((LOGITS, CHOSEN.float(), REJECTED), {}, "chosen to hold integer class ids but got float32"),
    "a channel in the mask": ((LOGITS, CHOSEN[:, None], REJECTED), {}, r"drop the channel dimension: chosen.squeeze"),
    "another size": ((LOGITS, CHOSEN, REJECTED[..., :3]), {}, "resize the logits to the masks"),
    "one mask fewer": ((LOGITS, CHOSEN, REJECTED[:1]), {}, "as many rejected as chosen masks but got 1 and 2"),
    "more pairs than images": ((LOGITS[:1], CHOSEN, REJECTED), {}, "2 pairs for 1 images; .* image_index"),
    "no pair": ((LOGITS[:0], CHOSEN[:0], REJECTED[:0]), {}, "at least one pair of masks but got none"),
    "class out of range": ((LOGITS, CLASS_7, REJECTED), {}, "chosen has class 7 but the model predicts 3 classes"),
    "class 2 of a sigmoid": ((LOGITS[:, :1], CHOSEN + 1, REJECTED), {}, r"predicts 2 classes \(1 channel\)"),
    "negative class": ((LOGITS, CHOSEN, REJECTED.long() - 1), {}, "rejected has class -1; classes count from 0"),
    "NaN logits": ((NAN, CHOSEN, REJECTED), {}, "finite logits but 24 of 96 are NaN or infinite, the first in image 0"),
    "inf logits": ((NAN.nan_to_num(float("inf")), CHOSEN, CHOSEN), {}, "finite logits"),
    "valid of another shape": ((LOGITS, CHOSEN, REJECTED), {"valid": ALL[:, :2]}, "valid to be a bool mask of shape"),
    "valid of another type": ((LOGITS, CHOSEN, REJECTED), {"valid": CHOSEN}, "but got uint8"),
    "region mask of another shape": ((LOGITS, CHOSEN, REJECTED), {"region": ALL[:, :2]}, "region_mask to be a bool"),
    "region function of another shape": (
        (LOGITS, CHOSEN, REJECTED),
        {"region": lambda *_: ALL[:1, :2]},
        r"region function's result to be a bool mask of shape \(2, 4, 4\)",
    ),
    "image index of floats": ((LOGITS, CHOSEN, REJECTED), {"image_index": torch.zeros(2)}, "image_index to be int64"),
    "image index too large": (
        (LOGITS, CHOSEN, REJECTED),
        {"image_index": torch.tensor([0, 2])},
        "from 0 to 1, .* image 2",
    ),
    "image index negative": (
        (LOGITS, CHOSEN, REJECTED),
        {"image_index": torch.tensor([0, -1])},
        "from 0 to 1, .* image -1",
    ),
    "misspelt quantity": ((LOGITS, CHOSEN, REJECTED), {"quantity": "logits"}, "quantity to be one of log_likelihood"),
    "misspelt region": ((LOGITS, CHOSEN, REJECTED), {"region": "picture"}, "region to be one of image, disagreement"),
    "misspelt reduction": ((LOGITS, CHOSEN, REJECTED), {"reduction": "avg"}, "reduction to be one of sum, mean"),
    "misspelt backend": (
        (LOGITS, CHOSEN, REJECTED),
        {"backend": "fast"},
        "backend to be one of auto, sparse",
    ),
}


@pytest.mark.parametrize("name", SCORES)
def test_score_pairs_refuses(name):
    arguments, options, message = SCORES[name]
    with pytest.raises(ValueError, match=message):
        score_pairs(*arguments, **options)


def test_values_are_not_checked_with_check_false():
    """check=False reads no values, which is the default on a GPU."""
    assert score_pairs(NAN, CHOSEN, REJECTED, check=False).margin.isnan().all()


def test_a_sum_that_overflows_is_not_taken_for_nan():
    huge = torch.full((1, 2, 4, 4), 3e38)
    assert score_pairs(huge, CHOSEN[:1], REJECTED[:1]).margin.tolist() == [0.0]


def test_masks_on_another_device():
    with pytest.raises(ValueError, match="chosen on the device of the logits, cpu, but it is on meta"):
        score_pairs(LOGITS, CHOSEN.to("meta"), REJECTED)


def test_kl_to_reference_refuses_another_architecture():
    with pytest.raises(ValueError, match=r"policy_logits of the shape of reference_logits, \(2, 2, 4, 4\)"):
        kl_to_reference(LOGITS, LOGITS[:, :2], CHOSEN, REJECTED)


def test_a_given_region_has_to_be_given():
    with pytest.raises(ValueError, match=r"region_mask for region=.given. but got none"):
        PreferenceLoss(objectives.sft, score=Score(region="given")).on_logits(LOGITS, None, CHOSEN, REJECTED)
    with pytest.raises(ValueError, match="region to be one of image, disagreement, boundary, given but got 'edge'"):
        Score(region="edge")


def test_scores_of_other_shapes():
    with pytest.raises(ValueError, match=r"\(4, 1\).*broadcasting"):
        PairScores(chosen=torch.zeros(4, 1), rejected=torch.zeros(4))
    with pytest.raises(ValueError, match=r"Expected PairScores\(chosen, rejected\)"):
        PairScores(chosen=torch.zeros(4))
    loss = PreferenceLoss(partial(objectives.dpo, beta=1.0))
    column, row = (PairScores(torch.zeros(shape), torch.zeros(shape)) for shape in ((4, 1), (4,)))
    with pytest.raises(ValueError, match=r"reference's scores of the shape of the policy's, \(4,\), but got \(4, 1\)"):
        loss(row, column)
    with pytest.raises(ValueError, match=r"weight of the shape of the pairs, \(4,\), but got \(4, 1\)"):
        loss(row, row, weight=torch.ones(4, 1))


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({}, "dpo needs the hyperparameter 'beta'"),
        ({"betta": 1.0}, "dpo has no hyperparameter 'betta'; it takes beta, label_smoothing"),
        ({"beta": 0.0}, "beta to be finite and above 0 but got 0.0"),
        ({"beta": float("nan")}, "beta to be finite"),
        ({"beta": "1"}, "beta to be a number but got '1'"),
        ({"beta": 1.0, "label_smoothing": 0.5}, "label_smoothing to be finite and at least 0 and below 0.5"),
    ],
)
def test_a_wrong_hyperparameter_is_found_when_the_loss_is_built(keywords, message):
    with pytest.raises((TypeError, ValueError), match=message):
        PreferenceLoss(partial(objectives.dpo, **keywords))
    with pytest.raises((TypeError, ValueError), match=message):
        PreferenceLoss(objectives.sft, anchors={"second": Anchor(1.0, partial(objectives.dpo, **keywords))})


@pytest.mark.parametrize(
    ("term", "message"),
    [
        (lambda policy: policy.margin.mean(), r"one value a pair, shape \(2,\), but got \(\)"),
        (lambda policy: 1.0, "one value a pair"),
        ("dpo", "to be a function but got 'dpo'"),
        (lambda polcy: polcy.margin, "needs the hyperparameter 'polcy'"),
    ],
)
def test_terms_that_are_none_are_refused(term, message):
    with pytest.raises((TypeError, ValueError), match=message):
        PreferenceLoss(term)


def test_anchors_of_the_wrong_type_or_name():
    with pytest.raises(TypeError, match=r"to be Anchor.*_convert_: all"):
        PreferenceLoss(objectives.sft, anchors={"nll": anchors.nll})
    with pytest.raises(ValueError, match=r"one is called .objective."):
        PreferenceLoss(objectives.sft, anchors={"objective": Anchor(1.0, anchors.nll)})
    with pytest.raises(ValueError, match="weight to be finite but got nan"):
        PreferenceLoss(objectives.sft, anchors={"nll": Anchor(float("nan"), anchors.nll)})


def test_a_term_on_a_score_it_is_not_defined_on():
    with pytest.raises(ValueError, match="simpo is defined on scores with reduction mean or class_balanced but"):
        PreferenceLoss(partial(objectives.simpo, beta=1.0, gamma=0.5), score=Score(reduction="sum"))
    with pytest.raises(ValueError, match="orpo is defined on scores with quantity log_likelihood but"):
        PreferenceLoss(partial(objectives.orpo, lam=0.1), score=Score(quantity="log_odds"))


def test_a_missing_reference():
    loss = PreferenceLoss(partial(objectives.dpo, beta=1.0), anchors={"hold": Anchor(1.0, anchors.hold)})
    scores = PairScores(torch.zeros(2), torch.zeros(2))
    with pytest.raises(ValueError, match=r"reference scores for the term 'objective' but got none; .*cpo, simpo, orpo"):
        loss(scores)
    with pytest.raises(ValueError, match="kl_to_reference for the term 'hold' but got none"):
        loss(scores, scores)
    with pytest.raises(ValueError, match="reference scores for the term 'objective'"):
        loss.on_logits(LOGITS, None, CHOSEN, REJECTED)


def test_one_reference_score_for_a_loss_that_reads_two():
    loss = PreferenceLoss(
        partial(objectives.dpo, beta=1.0),
        anchors={"lse": Anchor(1.0, anchors.log_sum_exp, score=Score(reduction="sum"))},
    )
    with pytest.raises(ValueError, match="each of the 2 scores that this loss reads but got one PairScores"):
        loss.on_logits(LOGITS, PairScores(torch.zeros(2), torch.zeros(2)), CHOSEN, REJECTED)


def test_scores_that_are_not_finite():
    loss = PreferenceLoss(partial(objectives.dpo, beta=1.0))
    good, bad = (PairScores(torch.tensor([-1.0, value]), torch.zeros(2)) for value in (-1.0, float("nan")))
    with pytest.raises(ValueError, match="finite values from the term 'objective' but pair 1 gave nan"):
        loss(bad, good)


@pytest.mark.parametrize("weight", [[1.0, -1.0], [1.0, float("inf")]])
def test_weights_that_are_none(weight):
    scores = PairScores(torch.zeros(2), torch.zeros(2))
    with pytest.raises(ValueError, match="pair weights of at least 0"):
        PreferenceLoss(objectives.sft)(scores, weight=torch.tensor(weight))
