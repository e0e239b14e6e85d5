"""What belongs to an image and what to a pair; other ignored values; pairs without a pixel; what models return."""

import warnings
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import segdpo
from segdpo import Boundary, PreferenceLoss, Score, kl_to_reference, objectives, pair_index, score_masks, score_pairs
from segdpo.kernels import LowResolution
from segdpo.scores import (
    Pairs,
    Rankings,
    log_prob,
    low_resolution_pairs,
    low_resolution_ranking,
    predicted_classes,
    sample,
)

# Three pairs of three images, of which none is of the image of its own number.
ORDER = torch.tensor([2, 0, 1])
LOGITS = torch.randn(3, 4, 6, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
CHOSEN, REJECTED, THIRD = torch.randint(4, (3, 3, 6, 5), generator=torch.Generator().manual_seed(2)).byte()
SOME = torch.rand(3, 6, 5, generator=torch.Generator().manual_seed(3)) < 0.5
OTHER = torch.rand(3, 6, 5, generator=torch.Generator().manual_seed(4)) < 0.7


def margins(counts, chosen=CHOSEN, logits=LOGITS):
    """Σ (log p[y⁺] − log p[y⁻]) over the pixels that count of each pair."""
    log_p = logits.log_softmax(1).numpy()[ORDER]
    found = [np.take_along_axis(log_p, mask.numpy().astype(int)[:, None], 1)[:, 0] for mask in (chosen, REJECTED)]
    return ((found[0] - found[1]) * np.broadcast_to(counts, found[0].shape)).sum((1, 2))


def low(logits=LOGITS):
    return LowResolution(logits, (6, 5), (6, 5))


OPTIONS = {"image_index": ORDER, "reduction": "sum"}
LOSS = PreferenceLoss(partial(objectives.cpo, beta=1.0), score=Score(reduction="sum"))


@pytest.mark.parametrize(
    ("given", "counts"),
    [
        ({"valid": SOME}, SOME[ORDER]),
        ({"pair_valid": SOME}, SOME),
        ({"valid": SOME, "pair_valid": OTHER}, SOME[ORDER] & OTHER),
        ({"region_mask": SOME}, SOME[ORDER]),
        ({"pair_region": SOME}, SOME),
        ({"region_mask": SOME, "pair_region": OTHER, "pair_valid": SOME}, SOME[ORDER] & OTHER & SOME),
    ],
)
def test_of_an_image_or_of_a_pair_where_there_are_as_many(given, counts):
    expected = torch.from_numpy(margins(counts.numpy()))
    of_pairs = {"region" if key == "region_mask" else key: value for key, value in given.items()}
    scores = score_pairs(LOGITS, CHOSEN, REJECTED, **OPTIONS, **of_pairs)
    torch.testing.assert_close(scores.margin, expected)
    torch.testing.assert_close(
        score_pairs(LOGITS, CHOSEN, REJECTED, **OPTIONS, **of_pairs, backend="reference").margin, expected
    )
    region = "given" if {"region_mask", "pair_region"} & given.keys() else "image"
    score, pairs = Score(region=region, reduction="sum"), Pairs(CHOSEN, REJECTED, image_index=ORDER, **given)
    torch.testing.assert_close(low_resolution_pairs(low(), pairs, score).margin, expected)
    loss = PreferenceLoss(partial(objectives.cpo, beta=1.0), score=score)
    terms = loss.on_logits(LOGITS, None, CHOSEN, REJECTED, image_index=ORDER, **given)
    torch.testing.assert_close(terms.parts["objective"], -F.logsigmoid(expected))
    cached = loss.score_logits(LOGITS, CHOSEN, REJECTED, image_index=ORDER, **given)
    torch.testing.assert_close(cached[score].margin, expected)
    # Rankings: the worst mask is the rejected one.
    ranking = torch.stack([THIRD, CHOSEN, REJECTED], 1)
    ranked = segdpo.score_ranking(LOGITS, ranking, **OPTIONS, **of_pairs).ranked
    lists = low_resolution_ranking(low(), Rankings(ranking, image_index=ORDER, **given), score).ranked
    for place, best in enumerate((THIRD, CHOSEN)):
        torch.testing.assert_close(ranked[:, place], torch.from_numpy(margins(counts.numpy(), best)))
        torch.testing.assert_close(lists[:, place], torch.from_numpy(margins(counts.numpy(), best)))
    if region == "image":
        index = pair_index(CHOSEN, REJECTED, given.get("valid"), ORDER, pair_valid=given.get("pair_valid"))
        assert index.valid.tolist() == counts.flatten(1).sum(1).tolist()
        torch.testing.assert_close(score_pairs(LOGITS, CHOSEN, REJECTED, index=index, **OPTIONS).margin, expected)
        p, q = LOGITS.softmax(1), LOGITS.flip(0).softmax(1)
        each = (q * (q / p).log()).sum(1)[ORDER] * (counts & (CHOSEN == REJECTED))
        mean = each.sum((1, 2)) / (counts & (CHOSEN == REJECTED)).sum((1, 2))
        torch.testing.assert_close(
            kl_to_reference(LOGITS, LOGITS.flip(0), CHOSEN, REJECTED, image_index=ORDER, **given), mean
        )


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"valid": SOME[:2]}, r"valid .*\(3, 6, 5\), one for each image.*\(2, 6, 5\); .* passed as pair_valid="),
        ({"pair_valid": SOME}, r"pair_valid .*\(2, 6, 5\), one for each pair.*\(3, 6, 5\); .* passed as valid="),
        ({"region": SOME[:2]}, r"region_mask .* one for each image.* passed as pair_region="),
        ({"pair_region": SOME}, r"pair_region .* one for each pair.* passed as region_mask="),
        ({"pair_region": SOME[:2], "region": "boundary"}, "either region or pair_region"),
    ],
)
def test_the_other_argument_is_named(given, message):
    index = torch.tensor([2, 2])  # two pairs of three images
    with pytest.raises(ValueError, match=message):
        score_pairs(LOGITS, CHOSEN[:2], REJECTED[:2], image_index=index, **given)
    if "valid" in given:
        made = pair_index(CHOSEN[:2], REJECTED[:2], given["valid"], torch.tensor([1, 1]))
        with pytest.raises(ValueError, match=r"valid of 3 images .* of 2; .* pair_valid="):
            score_pairs(LOGITS, CHOSEN[:2], REJECTED[:2], image_index=index, index=made)


def test_masks_of_0_and_255_are_told_once():
    chosen, rejected = ((mask > 2).byte() * 255 for mask in (CHOSEN, REJECTED))
    index = pair_index(chosen, rejected)
    for options in ({}, {"index": index}):
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("default")
            for _ in range(3):
                score_pairs(LOGITS[:, :1], chosen, rejected, **options)
        assert len([one for one in told if "only 0 and 255" in str(one.message)]) == 1
    masks, pairs = torch.cat([chosen, rejected]), torch.tensor([[0, 3], [1, 4], [2, 5]])
    with pytest.warns(UserWarning, match="pass mask == 255"):
        score_masks(LOGITS[:, :2], masks, pairs, torch.arange(3).repeat(2))
    score_pairs(LOGITS, chosen, rejected)  # of four classes 255 may well be all there is in a patch
    score_pairs(LOGITS[:, :1], chosen, chosen)  # padding
    score_pairs(LOGITS[:, :1], chosen, (REJECTED > 2).byte())  # the other mask shows the object


def many_classes(ids=torch.int32):
    logits = torch.randn(2, 300, 4, 5, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    chosen, rejected = torch.randint(250, 300, (2, 2, 4, 5), generator=torch.Generator().manual_seed(6)).to(ids)
    chosen[0, 0], rejected[1, :, 1], chosen[0, 1, :2] = 255, -1, 255
    return logits, chosen, rejected


def test_class_255_of_many_classes():
    logits, chosen, rejected = many_classes()
    log_p, known = logits.log_softmax(1), (chosen != -1) & (rejected != -1)
    first, last = (log_p.gather(1, (mask * known).long()[:, None])[:, 0] for mask in (chosen, rejected))
    expected = (first - last).mul(known).sum((1, 2)) / known.sum((1, 2))
    options = {"ignore": -1}
    for backend in ("sparse", "reference"):
        scores = score_pairs(logits, chosen, rejected, backend=backend, **options)
        torch.testing.assert_close(scores.margin, expected)
        torch.testing.assert_close(scores.chosen, first.mul(known).sum((1, 2)) / known.sum((1, 2)))
    index = pair_index(chosen, rejected, ignore=-1)
    torch.testing.assert_close(score_pairs(logits, chosen, rejected, index=index, **options).margin, expected)
    pairs = Pairs(chosen, rejected, ignore=-1)
    torch.testing.assert_close(
        low_resolution_pairs(LowResolution(logits, (4, 5), (4, 5)), pairs, Score()).margin, expected
    )
    masks, named = torch.cat([chosen, rejected]), torch.tensor([[0, 2], [1, 3]])
    torch.testing.assert_close(score_masks(logits, masks, named, torch.arange(2).repeat(2), **options).margin, expected)
    ranking = torch.stack([chosen, rejected], 1)
    torch.testing.assert_close(segdpo.score_ranking(logits, ranking, **options).margin, expected)
    torch.testing.assert_close(log_prob(logits, chosen * known - ~known * 1, ignore=-1), first * known)
    terms = PreferenceLoss(partial(objectives.cpo, beta=1.0)).on_logits(logits, None, chosen, rejected, ignore=-1)
    torch.testing.assert_close(terms.total, -F.logsigmoid(expected).mean())
    assert kl_to_reference(logits, logits, chosen, rejected, ignore=-1).tolist() == [0.0, 0.0]
    band = Boundary(1)(torch.tensor([[[255, 255, 7, -1]]]), torch.tensor([[[9, 9, 9, 9]]]), ignore=-1)
    assert band.tolist() == [[[False, True, True, False]]]


def test_255_is_not_guessed_for_many_classes():
    logits, chosen, rejected = many_classes()
    with pytest.raises(ValueError, match=r"ignore=.*255.*300 channels; pass ignore=-1"):
        score_pairs(logits, chosen, rejected)
    with pytest.raises(ValueError, match=r"made with ignore=-1 but got one made with ignore=255"):
        score_pairs(logits, chosen, rejected, index=pair_index(chosen, rejected), ignore=-1)
    with pytest.raises(ValueError, match=r"uint16 .* \.to\(torch.int32\)"):
        score_pairs(logits, chosen.to(torch.uint16), rejected.to(torch.uint16), ignore=65535)
    # −1 is 255 among numbers of uint8, which is a class here.
    eight = score_pairs(logits[:, :256], chosen.clamp(0, 255).byte(), rejected.clamp(0, 255).byte(), ignore=-1)
    wide = score_pairs(logits[:, :256], chosen.clamp(0, 255), rejected.clamp(0, 255), ignore=-1)
    torch.testing.assert_close(eight.margin, wide.margin)
    best = predicted_classes(logits)
    assert best.dtype == torch.int64
    assert (best == logits.argmax(1)).all()
    assert sample(logits * 1e3, 1, generator=torch.Generator().manual_seed(0)).max() > 255
    assert predicted_classes(logits[:, :255]).dtype == torch.uint8


TERMS = {
    "dpo": partial(objectives.dpo, beta=1.0),
    "orpo": partial(objectives.orpo, lam=0.5),
    "simpo": partial(objectives.simpo, beta=1.0, gamma=0.5),
    "sft": objectives.sft,
}


@pytest.mark.parametrize("name", TERMS)
def test_an_ignored_pair_is_left_out(name):
    loss = PreferenceLoss(TERMS[name], {"hinge": segdpo.Anchor(0.5, partial(segdpo.anchors.hinge, tau=0.2))})
    masks = CHOSEN.clone(), REJECTED.clone()
    masks[0][1] = 255
    logits, weight = LOGITS.clone().requires_grad_(), torch.tensor([1.0, 5.0, 3.0])
    with pytest.warns(UserWarning, match="they are left out"):
        terms = loss.on_logits(logits, LOGITS.flip(0), *masks, weight=weight)
    (gradient,) = torch.autograd.grad(terms.total, logits)
    kept = torch.tensor([0, 2])
    two = LOGITS[kept].clone().requires_grad_()
    expected = loss.on_logits(two, LOGITS.flip(0)[kept], masks[0][kept], masks[1][kept], weight=weight[kept])
    torch.testing.assert_close(terms.total, expected.total)
    torch.testing.assert_close(gradient[kept], torch.autograd.grad(expected.total, two)[0])
    assert (gradient[1] == 0).all()
    assert terms.weight == 4
    # Without another pair.
    with pytest.warns(UserWarning, match="they are left out"):
        alone = loss.on_logits(logits, LOGITS.flip(0), *masks, pair_valid=torch.zeros_like(SOME))
    assert (alone.total.item(), alone.weight.item()) == (0, 0)
    assert (torch.autograd.grad(alone.total, logits)[0] == 0).all()


def test_every_form_of_a_score_knows_pairs_without_a_pixel():
    valid = SOME.clone()
    valid[0] = False
    ranking, index = torch.stack([CHOSEN, THIRD, REJECTED], 1), pair_index(CHOSEN, REJECTED, valid)
    with pytest.warns(UserWarning, match="they are left out"):
        found = [
            score_pairs(LOGITS, CHOSEN, REJECTED, valid=valid),
            score_pairs(LOGITS, CHOSEN, REJECTED, valid=valid, index=index),
            score_pairs(LOGITS, CHOSEN, REJECTED, valid=valid, check=False),
            segdpo.score_ranking(LOGITS, ranking, valid=valid),
            low_resolution_pairs(low(), Pairs(CHOSEN, REJECTED, valid), Score()),
            low_resolution_ranking(low(), Rankings(ranking, valid), Score()),
            score_masks(
                LOGITS,
                torch.cat([CHOSEN, REJECTED]),
                torch.tensor([[0, 3], [1, 4], [2, 5]]),
                torch.arange(3).repeat(2),
                valid=valid,
            ),
        ]
    assert [scores.scored.tolist() for scores in found] == [[False, True, True]] * len(found)
    assert all(scores.margin[0] == 0 and scores.chosen[0] == 0 for scores in found)
    assert score_pairs(LOGITS, CHOSEN, REJECTED).scored is None
    assert found[0].detach().scored is found[0].scored


def test_what_models_return():
    expected = score_pairs(LOGITS, CHOSEN, REJECTED).margin
    for output in (
        SimpleNamespace(logits=LOGITS, loss=None),
        {"out": LOGITS, "aux": LOGITS[:, :1]},
        {"logits": LOGITS},
    ):
        assert (score_pairs(output, CHOSEN, REJECTED).margin == expected).all()
        dpo = PreferenceLoss(TERMS["dpo"])
        terms = dpo.on_logits(output, output, CHOSEN, REJECTED)
        assert terms.total.item() == pytest.approx(np.log(2))
        assert (dpo.score_logits(output, CHOSEN, REJECTED)[Score()].margin == expected).all()


@pytest.mark.parametrize(
    ("output", "masks", "error", "message"),
    [
        (
            [LOGITS, LOGITS[..., ::2, ::2]],
            CHOSEN,
            TypeError,
            r"a list of 2, such as .* deep supervision; .*output\[0\]",
        ),
        (LOGITS[:, None], CHOSEN, ValueError, r"one dimension more; with deep supervision .*logits\[:, 0\]"),
        (low(), CHOSEN, TypeError, "LowResolution; score it with segdpo.scores.low_resolution_pairs"),
        (LOGITS, F.one_hot(CHOSEN.long(), 4).movedim(-1, 1), ValueError, r"one-hot, pass chosen.argmax\(1\)"),
        (LOGITS, F.one_hot(CHOSEN.long(), 4).float(), ValueError, r"one-hot, pass chosen.argmax\(-1\)"),
        ({"aux": LOGITS}, CHOSEN, TypeError, "a dict of aux; pass the tensor"),
        (None, CHOSEN, TypeError, "but got NoneType"),
    ],
)
def test_what_models_return_that_is_not_clear(output, masks, error, message):
    with pytest.raises(error, match=message):
        LOSS.on_logits(output, None, masks, REJECTED)
