"""Several rounds: fresh candidates of the latest policy, the same test pairs, a share of the steps each."""

import csv
import json

import numpy as np
import pytest
import torch
from small import SMALL, composed

from segdpo.data.sources import Joined
from segdpo.models.weights import read_tensors
from segdpo.recipes import rounds
from segdpo.recipes.rounds import SEEDS_APART, check_rounds, shares, split_into_rounds
from segdpo.recipes.run import open_run, run_recipe

OWN_CANDIDATES = [*SMALL, "candidates=logit_noise", "candidates.amplitude=5", "candidates.count=3"]
SHORT = [*OWN_CANDIDATES, "callbacks.panels=null"]


@pytest.fixture(scope="module")
def two_rounds(tmp_path_factory):
    """Two rounds, and what each was given."""
    folder, seen = tmp_path_factory.mktemp("rounds"), []
    collect = rounds.collect_preferences

    def watching(run, images, network, **options):
        preferences = collect(run, images, network, **options)
        # As they are now: the policy is trained further.
        weights = {name: tensor.clone() for name, tensor in network.state_dict().items()}
        seen.append((run.config.seed, weights, options["weights"], preferences))
        return preferences

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rounds, "collect_preferences", watching)
        summary = run_recipe(composed(*SHORT, "rounds=2", "trainer.max_steps=7", folder=folder))
    return folder, summary, seen


def test_each_round_asks_the_policy_that_the_one_before_has_left(two_rounds):
    folder, _, ((seed, asked, path, first), (later_seed, later, no_path, second)) = two_rounds
    assert (seed, later_seed) == (0, SEEDS_APART)
    assert "references" in str(path)
    assert no_path is None
    for weights, file in ((asked, path), (later, folder / "run" / "round_1" / "policy.safetensors")):
        kept = read_tensors(file)
        assert all(torch.equal(weights[name], kept[name]) for name in kept)
    np.testing.assert_array_equal(first.images, second.images)
    masks = [[judged.source[int(number)].masks for number in judged.splits.train] for judged in (first, second)]
    assert not all(np.array_equal(one, two) for one, two in zip(*masks, strict=True))


def test_all_rounds_are_measured_on_the_pairs_of_the_first(two_rounds):
    first, second = (judged for *_, judged in two_rounds[2])
    for split in ("val", "test"):
        numbers = [getattr(judged.splits, split) for judged in (first, second)]
        for one, two in zip(*numbers, strict=True):
            before, after = first.source[int(one)], second.source[int(two)]
            assert before.id == after.id
            assert before.pairs == after.pairs
            np.testing.assert_array_equal(before.masks, after.masks)


def test_steps_and_judgements_add_up(two_rounds):
    folder, summary, seen = two_rounds
    assert shares(7, 2) == [4, 3]
    with (folder / "run" / "metrics.csv").open() as file:
        steps = [int(row["step"]) for row in csv.DictReader(file) if row["train/loss"]]
    assert steps == list(range(7))
    # Of 3 masks ⌈9/2⌉ − 2 = 3 comparisons find best and worst, of 2 it is 1.
    answers = {0: 0, 1: 0, 2: 1, 3: 3}
    expected = sum(answers[masks] for *_, judged in seen for masks in judged.masks)
    assert summary["pairs"]["judgements"] == expected
    assert 14 * 2 < expected <= 14 * 2 * 3
    kept = json.loads((folder / "run" / "summary.json").read_text())
    assert kept["difference"]["iou"]["n"] == 6


def test_killed_in_the_second_round_it_goes_on_there(two_rounds, tmp_path):
    folder, summary, _ = two_rounds
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
    own = [one.config for one in split_into_rounds(open_run(config))]
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
def test_choices_that_meet_in_rounds(choices, two_rounds, tmp_path):
    words = [
        *OWN_CANDIDATES,
        "callbacks=none",
        f"cache={two_rounds[0] / 'cache'}",
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
        (["candidates=existing"], r"candidates of the policy but got segdpo\.preferences\.existing"),
        (["trainer.max_steps=1"], r"max_steps of at least 2.*but got 1"),
        (["trainer.devices=2"], r"trainer\.devices=1 but got 2"),
        (["adapter=lora", "reference=adapter_off"], "round_reference=first"),
        (["questions=answered"], "but got questions=answered"),
        (["resume=some.ckpt"], r"but got resume=some\.ckpt"),
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
