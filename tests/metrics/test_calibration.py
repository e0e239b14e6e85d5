"""Calibration against torchmetrics, by hand, and cut in pieces."""

import pytest
import torch
from torchmetrics.functional.classification import multiclass_calibration_error

from segdpo.metrics.calibration import Calibration


def calibrated(logits, gold, valid=None, **options):
    calibration = Calibration(**options)
    calibration.update(logits, gold, valid)
    return calibration.compute()


@pytest.mark.parametrize("space", [(9, 11), (4, 5, 6)])
@pytest.mark.parametrize("channels", [1, 2, 5])
def test_as_torchmetrics_and_the_definition(channels, space):
    logits, gold = 3 * torch.randn(4, channels, *space), torch.randint(0, max(2, channels), (4, *space))
    gold[0] = 255
    valid = torch.rand(4, *space) > 0.2
    found = calibrated(logits, gold, valid, bins=10)
    inside = valid & (gold != 255)
    two = torch.cat([torch.zeros_like(logits), logits], 1) if channels == 1 else logits
    chances, truth = two.softmax(1).movedim(1, -1)[inside], gold[inside]
    theirs = multiclass_calibration_error(chances, truth, num_classes=max(2, channels), n_bins=10)
    torch.testing.assert_close(found["ece"], theirs)
    squares = (chances.double() - torch.nn.functional.one_hot(truth, chances.shape[1])).square().sum(1)
    assert found["brier"].item() == pytest.approx(squares.mean().item() / 2, rel=1e-5)
    assert found["bins"].sum() == inside.sum()


def test_by_hand():
    # Sigmoids of 0.9, 0.6, 0.6 and 0.05; the last is a confidence of 0.95 in class 0.
    logits = torch.tensor([0.9, 0.6, 0.6, 0.05]).logit().view(1, 1, 2, 2)
    found = calibrated(logits, torch.tensor([[[1, 0], [1, 1]]]), bins=5)
    assert found["bins"].tolist() == [0, 0, 0, 2, 2]
    assert found["confidence"][3:].tolist() == pytest.approx([0.6, 0.925])
    assert found["accuracy"][3:].tolist() == [0.5, 0.5]
    assert found["ece"].item() == pytest.approx((0.1 + 0.425) / 2)
    assert found["brier"].item() == pytest.approx((0.01 + 0.36 + 0.16 + 0.9025) / 4)
    assert found["accuracy"][:3].isnan().all()


def test_one_channel_is_two_with_a_zero():
    logits, gold = torch.randn(2, 1, 8, 8), torch.randint(0, 2, (2, 8, 8)).byte()
    one, two = calibrated(logits, gold), calibrated(torch.cat([torch.zeros_like(logits), logits], 1), gold)
    for name, value in one.items():
        torch.testing.assert_close(value, two[name], equal_nan=True)


def test_a_network_that_is_sure_and_right_or_wrong():
    gold = torch.tensor([[[0, 1]]])
    sure = torch.tensor([[[[-40.0, 40.0]]]])
    assert calibrated(sure, gold)["ece"] == calibrated(sure, gold)["brier"] == 0
    assert calibrated(-sure, gold)["ece"] == calibrated(-sure, gold)["brier"] == 1


def test_two_processes_and_any_batch_size_give_the_same_bits():
    logits, gold = torch.randn(6, 3, 10, 10), torch.randint(0, 3, (6, 10, 10))
    whole = calibrated(logits, gold)
    ranks = [Calibration(), Calibration()]
    for image in (4, 1, 0, 5, 3, 2):
        ranks[image % 2].update(logits[image : image + 1], gold[image : image + 1])
    ranks[0].merge_state(ranks[1])
    for name, value in ranks[0].compute().items():
        torch.testing.assert_close(value, whole[name], rtol=0, atol=0, equal_nan=True)


def test_half_precision_is_read_in_full():
    logits, gold = torch.randn(2, 3, 8, 8).bfloat16(), torch.randint(0, 3, (2, 8, 8))
    for name, value in calibrated(logits, gold).items():
        torch.testing.assert_close(value, calibrated(logits.float(), gold)[name], rtol=0, atol=0, equal_nan=True)


def test_nothing_to_judge_is_no_number():
    found = calibrated(torch.zeros(1, 2, 3, 3), torch.full((1, 3, 3), 255))
    assert found["ece"].isnan()
    assert found["brier"].isnan()


def test_errors_name_the_fix():
    logits, gold = torch.zeros(1, 2, 2, 2), torch.zeros(1, 2, 2, dtype=torch.long)
    with pytest.raises(ValueError, match=r"gold.*class 2.*2 classes"):
        calibrated(logits, gold + 2)
    with pytest.raises(ValueError, match="4 of 4 "):
        calibrated(logits * torch.nan, gold)
    with pytest.raises(ValueError, match="gold of shape"):
        calibrated(logits, gold[:, :1])
    with pytest.raises(ValueError, match="bins"):
        Calibration(bins=0)
