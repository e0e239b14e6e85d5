"""task=finetune: targets worked out by hand, its `chosen` against loss=sft, and what its judgements cost."""

import numpy as np
import pytest
import torch
from small import SMALL, composed

from segdpo.data.datasets import class_shares, rank_weights
from segdpo.models.weights import read_tensors
from segdpo.recipes.run import run_recipe

SHORT = [*SMALL, "callbacks=none", "logger=none"]
# One convolution, so that nothing but the order of sums tells the two apart.
FOUR_MASKS_JUDGED = 24 - 4 - 6


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return f"cache={tmp_path_factory.mktemp('cache')}"


def run_with(cache, folder, *choices):
    return run_recipe(composed(*SHORT, cache, f"run_folder={folder}", *choices))


def test_chosen_is_sft(cache, tmp_path):
    pairs = run_with(cache, tmp_path / "sft", "loss=sft")
    masks = run_with(cache, tmp_path / "chosen", "task=finetune", "finetune.target=chosen")
    weights = [read_tensors(tmp_path / name / "policy.safetensors") for name in ("sft", "chosen")]
    before = read_tensors(tmp_path / "sft" / "reference.safetensors")
    for name, tensor in weights[0].items():
        torch.testing.assert_close(tensor, weights[1][name], atol=1e-5, rtol=1e-4)
        assert not torch.allclose(tensor, before[name], atol=1e-3), "nothing was learned"
    for key in ("chosen_gain", "margin", "accuracy"):
        assert masks["pairs"][key] == pytest.approx(pairs["pairs"][key], abs=1e-4)
    # The best of four masks takes three comparisons, to whoever needs no more than that.
    assert masks["pairs"]["judgements"] == pairs["pairs"]["judgements"] == 3 * FOUR_MASKS_JUDGED


@pytest.mark.parametrize(("target", "judgements"), [("gold", 0), ("consensus", 5 * FOUR_MASKS_JUDGED)])
def test_other_targets(target, judgements, cache, tmp_path):
    summary = run_with(cache, tmp_path, "task=finetune", f"finetune.target={target}")
    assert set(summary) >= {"reference", "policy", "difference", "pairs", "metric", "seconds"}
    assert summary["pairs"]["judgements"] == judgements
    assert summary["pairs"].get("gold_masks") == (FOUR_MASKS_JUDGED if target == "gold" else None)
    assert summary["pairs"]["chosen_gain"] is not None


def test_an_unknown_target_names_those_there_are(cache, tmp_path):
    with pytest.raises(ValueError, match=r"finetune\.target to be one of gold, chosen, consensus but got 'best'"):
        run_with(cache, tmp_path, "task=finetune", "finetune.target=best")


def test_the_weights_of_ranks_fall_in_a_line():
    np.testing.assert_allclose(rank_weights(4), [0.4, 0.3, 0.2, 0.1])
    masks = np.array([[[1, 1, 255]], [[0, 1, 255]], [[0, 255, 1]], [[0, 0, 255]]], np.uint8)
    shares = class_shares(masks, 2, rank_weights(4))
    # Second pixel: .4 + .3 say 1 and .1 says 0, of .8 that say anything; third: one mask alone.
    np.testing.assert_allclose(shares[1, 0], [0.4, 0.7 / 0.8, 1.0], rtol=1e-6)
    np.testing.assert_allclose(shares.sum(0), 1)
