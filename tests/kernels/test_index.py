"""Where masks differ: positions worked out by hand, through the collate, Lightning, and padding."""

import numpy as np
import pytest
import torch
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch.plugins.precision import HalfPrecision

from segdpo import PairIndex, Score, mask_index, pair_index, score_masks, score_pairs
from segdpo.data.batches import PairItem, collate_pairs
from segdpo.training.scoring import score_batch

CHOSEN = torch.tensor([[[1, 2, 255], [0, 0, 3]], [[4, 4, 4], [0, 0, 0]]]).byte()
REJECTED = torch.tensor([[[1, 0, 1], [2, 255, 0]], [[4, 4, 4], [0, 0, 5]]]).byte()
VALID = torch.tensor([[[True, True, True], [True, True, False]]])


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64])
def test_by_hand(dtype):
    index = pair_index(CHOSEN.to(dtype), REJECTED.to(dtype), VALID, torch.tensor([0, 0]))
    # Pair 0 differs at pixels 1 and 3 (2 and 4 are ignored, 5 is not valid); pair 1 only at 5, which is not valid.
    assert index.position.tolist() == [1, 3]
    assert (index.plus.tolist(), index.minus.tolist()) == ([2, 0], [0, 2])
    assert (index.valid.tolist(), index.differing.tolist(), index.pixels) == ([3, 5], [2, 0], 6)
    assert (index.plus.dtype, index.whole) == (dtype, False)
    assert index.pair().tolist() == [0, 0]


def test_bool_masks_that_are_valid_everywhere():
    index = pair_index(torch.eye(2).bool()[None], torch.ones(1, 2, 2).bool())
    assert (index.position.tolist(), index.plus.tolist(), index.minus.tolist()) == ([1, 2], [0, 0], [1, 1])
    assert (index.plus.dtype, index.whole) == (torch.uint8, True)


def item(name, size, masks, pairs):
    rng = np.random.default_rng(len(name) + size)
    return PairItem(
        id=name,
        view=0,
        image=rng.normal(size=(3, size, size)).astype(np.float32),
        valid=rng.random((size, size)) > 0.1,
        gold=None,
        masks=rng.integers(0, 3, (masks, size, size)).astype(np.uint8),
        numbers=np.arange(masks),
        pairs=np.array(pairs),
        weight=np.ones(len(pairs), np.float32),
        dropped=0,
    )


FEW = [item("a", 5, 2, [(0, 1)]), item("bb", 8, 2, [(1, 0)])]
MANY = [item("a", 5, 3, [(0, 1), (0, 2), (2, 1)]), item("bb", 8, 4, [(1, 0), (3, 0), (1, 2), (2, 3), (3, 1)])]


@pytest.mark.parametrize("items", [FEW, MANY], ids=["one pair an image", "many"])
def test_the_collate_finds_it_after_padding(items):
    batch = collate_pairs(items)
    assert batch.chosen.shape[1:] == (8, 8)
    assert (batch.index is None, batch.shared is None) == ((False, True) if items is FEW else (True, False))
    logits = torch.randn(2, 3, 8, 8)
    options = {"valid": batch.valid, "image_index": batch.image_index}
    expected = score_pairs(logits, batch.chosen, batch.rejected, backend="reference", **options)
    found = score_batch([Score()], logits, batch)[Score()]
    torch.testing.assert_close(found.margin, expected.margin)
    torch.testing.assert_close(found.chosen, expected.chosen)


@pytest.mark.parametrize("items", [FEW, MANY], ids=["one pair an image", "many"])
def test_lightning_moves_it_and_leaves_whole_numbers_whole(items):
    batch = collate_pairs(items)
    half = HalfPrecision("bf16-true").convert_input(batch)
    assert half.image.dtype == torch.bfloat16
    for one in (move_data_to_device(batch, torch.device("meta")), half):
        index = one.index if items is FEW else one.shared.index.rows
        own = batch.index if items is FEW else batch.shared.index.rows
        assert isinstance(index, PairIndex)
        for name, value in vars(own).items():
            moved = getattr(index, name)
            if isinstance(value, torch.Tensor):
                assert (moved.dtype, moved.device) == (value.dtype, one.image.device)
            else:
                assert moved == value


def masks_case(ignored=False):
    torch.manual_seed(3)
    masks = torch.randint(0, 3, (7, 6, 5), dtype=torch.uint8)
    masks[:, 0, 0] = 255
    if ignored:
        masks[2, 3, 3] = 255
    pairs = torch.tensor([(a, b) for a in range(4) for b in range(a)] + [(4, 5), (6, 5), (4, 6)])
    return masks, pairs, torch.tensor([0, 0, 0, 0, 1, 1, 1])


def test_k_masks_have_k_minus_one_rows():
    masks, pairs, image = masks_case()
    index = mask_index(masks, pairs, image)
    assert len(index.row_image) == 3 + 2
    assert index.shared
    differ = (masks[pairs[:, 0]] != masks[pairs[:, 1]]).flatten(1).sum(1)
    assert index.differing.equal(differ)
    assert index.valid.tolist() == [29] * 9


def test_masks_that_ignore_other_pixels_are_compared_pair_by_pair():
    masks, pairs, image = masks_case(ignored=True)
    index = mask_index(masks, pairs, image)
    assert len(index.row_image) == 6 + 2
    assert not index.shared
    assert index.valid.tolist() == [28 if 2 in pair else 29 for pair in pairs.tolist()]
    logits = torch.randn(2, 3, 6, 5)
    expected = score_pairs(logits, masks[pairs[:, 0]], masks[pairs[:, 1]], image_index=image[pairs[:, 0]])
    torch.testing.assert_close(score_masks(logits, masks, pairs, image, index=index).margin, expected.margin)


def test_pairs_that_are_none_of_these_masks():
    masks, pairs, image = masks_case()
    logits = torch.randn(2, 3, 6, 5)
    with pytest.raises(ValueError, match=r"pairs as int64 \[pairs, 2\].* but got float32"):
        score_masks(logits, masks, pairs.float(), image)
    with pytest.raises(ValueError, match="masks 0 to 6 but got mask 7"):
        score_masks(logits, masks, pairs + 1, image)
    with pytest.raises(ValueError, match="both masks of a pair to be of one image"):
        score_masks(logits, masks, torch.tensor([[0, 6]]), image)
    with pytest.raises(ValueError, match=r"mask_image of shape \(7,\), the image of each mask, but got \(2,\)"):
        score_masks(logits, masks, pairs, image[:2])
