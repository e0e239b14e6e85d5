"""Several rounds: fresh candidates of the latest policy, the same test pairs, a share of the steps each."""

import csv
import json

import numpy as np
import pytest
import torch
from small import SMALL, composed

from segdpo.data.sources import Joined
from segdpo.models.weights import read_tensors
from segdpo.recipes import rounds as course
from segdpo.recipes.rounds import SEEDS_APART, check_rounds, rounds_of, shares
from segdpo.recipes.run import open_setting, run_recipe

OWN_CANDIDATES = [*SMALL, "candidates=logit_noise", "candidates.amplitude=5", "candidates.count=3"]
SHORT = [*OWN_CANDIDATES, "callbacks.panels=null"]


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """Two rounds, and what each was given."""
    folder, seen = tmp_path_factory.mktemp("rounds"), []
    whole = course.with_preferences

    def watching(*given, **options):
        judged = whole(*given, **options)
        seen.append((given[0].seed, given[3], judged))
        return judged

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(course, "with_preferences", watching)
        summary = run_recipe(composed(*SHORT, "rounds=2", "trainer.max_steps=7", folder=folder))
    return folder, summary, seen


def test_each_round_asks_the_policy_that_the_one_before_has_left(told):
    folder, _, ((seed, asked, first), (later_seed, later, second)) = told
    assert (seed, later_seed) == (0, SEEDS_APART)
    assert "references" in asked["path"]
    assert later["path"] == str(folder / "run" / "round_1" / "policy.safetensors")
    np.testing.assert_array_equal(first.images, second.images)
    masks = [[judged.source[int(number)].masks for number in judged.splits.train] for judged in (first, second)]
    assert not all(np.array_equal(one, two) for one, two in zip(*masks, strict=True))


def test_all_rounds_are_measured_on_the_pairs_of_the_first(told):
    first, second = (judged for _, _, judged in told[2])
    for split in ("val", "test"):
        numbers = [getattr(judged.splits, split) for judged in (first, second)]
        for one, two in zip(*numbers, strict=True):
            before, after = first.source[int(one)], second.source[int(two)]
            assert before.id == after.id
            assert before.pairs == after.pairs
            np.testing.assert_array_equal(before.masks, after.masks)


def test_steps_and_judgements_add_up(told):
    folder, summary, seen = told
    assert shares(7, 2) == [4, 3]
    with (folder / "run" / "metrics.csv").open() as file:
        steps = [int(row["step"]) for row in csv.DictReader(file) if row["train/loss"]]
    assert steps == list(range(7))
    # Of 3 masks ⌈9/2⌉ − 2 = 3 comparisons find best and worst, of 2 it is 1.
    prices = {0: 0, 1: 0, 2: 1, 3: 3}
    expected = sum(prices[masks] for _, _, judged in seen for masks in judged.masks)
    assert summary["pairs"]["judgements"] == expected
    assert 14 * 2 < expected <= 14 * 2 * 3
    kept = json.loads((folder / "run" / "summary.json").read_text())
    assert kept["difference"]["iou"]["n"] == 6


def test_killed_in_the_second_round_it_goes_on_there(told, tmp_path):
    folder, summary, _ = told
    usual = [*SHORT, "rounds=2", "trainer.max_steps=7", f"cache={folder / 'cache'}", f"run_folder={tmp_path}"]
    (tmp_path / "round_1").mkdir()
    left = folder / "run" / "round_1" / "policy.safetensors"
    (tmp_path / "round_1" / left.name).write_bytes(left.read_bytes())
    again = run_recipe(composed(*usual, "resume=last"))
    assert not (tmp_path / "round_1" / "metrics.csv").exists()
    files = [read_tensors(place / "policy.safetensors") for place in (folder / "run", tmp_path)]
    assert all(torch.equal(files[0][name], files[1][name]) for name in files[0])
    assert again["policy"] == summary["policy"]


def test_what_goes_with_the_seed_of_the_run_stays_in_all_rounds(tmp_path):
    words = [
        "seed=2",
        "data.seed=${seed}",
        "+note.path=models/${data.seed}",
        "+note.own=${seed}/x",
        "trainer.max_steps=7",
    ]
    config = composed(*OWN_CANDIDATES, "rounds=2", *words, folder=tmp_path)
    own = [one.config for one in rounds_of(open_setting(config))]
    assert [one.seed for one in own] == [2, 2 + SEEDS_APART]
    assert [(one.data.seed, one.note.path, one.note.own) for one in own] == [(2, "models/2", "2/x")] * 2
    assert [one.trainer.max_steps for one in own] == [4, 3]


@pytest.mark.parametrize(
    "choices",
    [
        ["round_reference=first"],
        ["task=finetune", "finetune.target=consensus"],
        ["adapter=lora", "loss=hold_anchor"],
    ],
    ids=str,
)
def test_choices_that_meet_in_rounds(choices, told, tmp_path):
    words = [
        *OWN_CANDIDATES,
        "callbacks=none",
        f"cache={told[0] / 'cache'}",
        f"run_folder={tmp_path}",
        "rounds=3",
        "trainer.max_steps=12",
    ]
    summary = run_recipe(composed(*words, "datamodule.batch_size=2", *choices))
    assert summary["pairs"]["judgements"] > 0
    assert summary["pairs"]["chosen_gain"] is not None
    assert sorted(path.name for path in tmp_path.glob("round_*")) == ["round_1", "round_2", "round_3"]


@pytest.mark.parametrize(
    ("choices", "said"),
    [
        (["candidates=existing"], "pairs that ask the policy for masks"),
        (["trainer.max_steps=1"], r"max_steps of at least 2.*but got 1"),
        (["trainer.devices=2"], r"trainer\.devices=1 but got 2"),
        (["adapter=lora", "reference=adapter_off"], "round_reference=first"),
        (["resume=some.ckpt"], r"resume=last, or none, but got some\.ckpt"),
        (["round_reference=best"], "latest or first but got rounds=2 round_reference=best"),
        (["rounds=0"], "rounds of at least 1"),
    ],
)
def test_what_no_rounds_can_be_made_of(choices, said):
    with pytest.raises(ValueError, match=said):
        check_rounds(composed("candidates=logit_noise", "rounds=2", *choices))


def test_joined_sources_are_numbered_through():
    class Letters(str):
        classes = ("background", "object")

    joined = Joined([Letters("ab"), Letters(""), Letters("cde")])
    assert [joined[number] for number in range(len(joined))] == list("abcde")
    with pytest.raises(IndexError, match="from 0 to 4 but got 5"):
        joined[5]
