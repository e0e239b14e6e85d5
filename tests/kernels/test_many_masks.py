"""Pairs between masks that are in several of them, against each pair by itself in float64."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from segdpo import Score, mask_index
from segdpo.scores import MaskPairs, Pairs, score_masks_by, score_pairs_by


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
    case=cases(), asked=st.lists(scores, min_size=1, max_size=2, unique=True), eager=st.booleans(), made=st.booleans()
)
def test_each_pair_by_itself(case, asked, eager, made):
    logits, masks, pairs, image, valid = case
    index = mask_index(masks, pairs, image, valid) if made else None
    wants = asked if eager else []
    ours = score_masks_by(asked, logits, MaskPairs(masks, pairs, image, valid, index), wants_chosen=wants)
    one_by_one = Pairs(masks[pairs[:, 0]], masks[pairs[:, 1]], valid, image[pairs[:, 0]])
    plain = score_pairs_by(asked, logits, one_by_one, backend="reference")
    slopes = torch.rand(2, len(pairs), dtype=torch.float64)
    gradients = []
    for found in (ours, plain):
        total = sum((slopes[0] * found[s].margin + slopes[1] * found[s].chosen).sum() for s in asked)
        gradients.append(torch.autograd.grad(total, logits)[0])
    for score in asked:
        torch.testing.assert_close(ours[score].margin, plain[score].margin, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(ours[score].chosen, plain[score].chosen, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-9)
