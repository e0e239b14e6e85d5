"""Runs on a folder in which only some images have gold, or none: they work, or stop before anything is trained."""

import shlex
from dataclasses import replace

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from small import CONF, CONVOLUTION, composed

from segdpo.data import FolderDataset, Shapes, write_folder
from segdpo.recipes import gold as checks
from segdpo.recipes.reference import images_to_judge, seen_images
from segdpo.recipes.run import open_run, run_recipe
from segdpo.recipes.typed import choice_of, command_with

GOLD = (0, 4, 8, 12, 16, 20)
FAST = [
    *CONVOLUTION,
    *("data=folder", "callbacks=none", "logger=none", "trainer.enable_checkpointing=false", "threads=1"),
    *("trainer.accelerator=cpu", "trainer.max_steps=2", "datamodule.batch_size=4", "optimizer.lr=0.01"),
    *("reference_training.steps=4", "reference_training.optimizer.lr=0.05"),
]
OWN = ["reference_training=few_masks", "candidates=logit_noise", "candidates.amplitude=5", "judge=agreement"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Folders of 24 images: of six or none of them gold, with four annotators' masks or without."""
    root = tmp_path_factory.mktemp("gold")
    torch.set_num_threads(1)
    for name, masks, golds in (
        ("some", False, GOLD),
        ("none", False, ()),
        ("masks", True, GOLD),
        ("nothing", True, ()),
    ):
        source = Shapes(24, size=32) if masks else Shapes(24, size=32, masks=None)
        records = [one if k in golds else replace(one, gold=None) for k, one in enumerate(source)]
        write_folder(root / name, records, source.classes)
    return root


def opened(data, name, folder, *overrides):
    return open_run(composed(*FAST, f"data.root={data / name}", *overrides, folder=folder))


def test_a_reference_from_the_gold_there_is_candidates_of_the_rest_and_a_judge_without_gold(data, tmp_path):
    summary = run_recipe(composed(*FAST, f"data.root={data / 'some'}", *OWN, folder=tmp_path))
    # A fifth of six gold masks is 1.2, a tenth is 0.6.
    run = opened(data, "some", tmp_path, *OWN)
    assert run.splits.gold == (4, 1, 1)
    seen = seen_images(run)
    assert seen.tolist() == sorted(set(GOLD) & set(run.splits.train.tolist()))
    assert images_to_judge(run).tolist() == sorted(set(run.splits.train.tolist()) - set(GOLD))
    assert 0 < summary["pairs"]["train"] <= len(run.splits.train) - 4
    assert summary["pairs"]["accuracy"] is not None
    assert summary["policy"]["iou"]["n"] == summary["reference"]["iou"]["n"] == 1
    # The one validation image with gold, whether or not its candidates made a pair.
    assert 0 <= summary["metric"] <= 1


def test_the_reference_is_trained_on_as_many_as_asked_for(data, tmp_path):
    def seen(*overrides):
        return seen_images(opened(data, "some", tmp_path, "reference_training=few_masks", *overrides))

    assert len(seen()) == len(seen("reference_training.at_most=null")) == 4
    assert len(seen("reference_training.at_most=3")) == len(seen("reference_training.images=3")) == 3
    assert set(seen("reference_training.images=3").tolist()) < set(GOLD)
    with pytest.raises(ValueError, match=r"images to be from 1 to 4, .* but got 5"):
        seen("reference_training.images=5")


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        (
            "some",
            [],
            r"masks of the training images.*'first'.* has none; 4 of the 17 have gold.*few_masks.*judge=agree",
        ),
        ("none", [], r"masks of the training images.*has none; 0 of the 17 have gold\. Draw gold.*checkpoint"),
        (
            "none",
            ["reference_training=few_masks"],
            r"gold of some training images.* none of the 17 has any\. Draw gold",
        ),
        ("nothing", ["reference_training=few_masks"], r"none of the 17 has any\..*\n.*reference_training=noisy_masks"),
        ("masks", [], r"gold of the 24 images.*judge=iou needs, but 18 have none, the first 'shapes-0-00001'"),
        ("nothing", ["judge=noisy"], r"gold of the 24 images.*judge=gumbel needs, but 24 have none"),
        (
            "masks",
            ["candidates=corruptions", "judge=agreement"],
            r"candidates=corrupt needs, but 18.*\n.*own_candidates$",
        ),
        ("some", [*OWN, "judge=dice"], r"gold of the 20 images.*judge=dice needs, but 18 have none"),
        ("some", [*OWN[:1], "judge=agreement"], r"two or more candidates.*existing has them for none of the 13 images"),
        ("some", [*OWN, "task=finetune"], r"gold of the 13 images for finetune.target=gold but 13.*\n.*target=chosen$"),
        ("some", [*OWN, "task=reward", "judge=iou"], r"gold of the 20 images.*judge=iou needs"),
        ("some", [*OWN, "task=policy_gradient"], r"gold of some of the 13 .*reward=iou needs.*\n.*judge_seen=true$"),
        ("nothing", ["task=policy_gradient"], r"gold of some of the 17 .*reward=iou needs, but none has any"),
        ("some", [*OWN, "task=policy_gradient", "reward=judge"], r"single masks for reward=judge but judge=agreement"),
        ("nothing", ["task=best_of"], r"gold of some of the 5 test images for judge=iou but none"),
        ("nothing", ["task=supervised", "datamodule.items.target=gold"], r"17 of 17 records have no gold.*\"any\""),
    ],
)
def test_what_needs_gold_that_is_not_there_stops_before_anything_is_trained(data, tmp_path, name, options, words):
    with pytest.raises(ValueError, match=f"(?s){words}"):
        run_recipe(composed(*FAST, f"data.root={data / name}", *options, folder=tmp_path))
    assert not (tmp_path / "cache").exists()
    assert [path.name for path in (tmp_path / "run").iterdir()] == [".lock"]


@pytest.mark.parametrize(
    ("name", "options", "gold"),
    [
        ("some", [*OWN, "task=reward", "reward_test.attack.steps=1"], None),
        ("some", [*OWN, "task=finetune", "finetune.target=chosen"], 1),
        ("some", ["task=supervised", "datamodule.items.target=gold"], 1),
        ("some", [*OWN, "task=policy_gradient", "reference_training.judge_seen=true"], 1),
        ("some", ["reference_training=few_masks", "task=best_of"], 1),
    ],
)
def test_other_tasks_use_the_gold_there_is(data, tmp_path, name, options, gold):
    summary = run_recipe(composed(*FAST, f"data.root={data / name}", *options, folder=tmp_path))
    assert gold is None or summary["policy"]["iou"]["n"] == gold


@pytest.fixture
def typed():
    """Make Hydra say that some words were typed."""

    def set_words(*words):
        with initialize_config_dir(str(CONF), version_base="1.3"):
            config = compose("train", overrides=list(words), return_hydra_config=True)
        HydraConfig.instance().set_config(config)

    yield set_words
    HydraConfig.instance().cfg = None


def test_the_command_is_the_typed_one_with_the_options_changed(typed):
    typed(
        "data=folder", "data.root=my data", "judge=noisy", "judge.temperature=0.1", "judge@judge.judge=dice", "seed=3"
    )
    assert shlex.split(command_with("judge=agreement"))[2:] == [
        "data=folder",
        "data.root=my data",
        "seed=3",
        "judge=agreement",
    ]
    assert shlex.split(command_with("seed=4", "loss=dpo"))[-2:] == ["seed=4", "loss=dpo"]
    assert "seed=3" not in command_with("seed=4")
    assert choice_of(composed("judge=dice"), "judge") == "judge=noisy"


def test_the_printed_command_works(data, tmp_path, typed):
    words = [*FAST, f"data.root={data / 'some'}"]
    typed(*words)
    with pytest.raises(ValueError, match="would work") as caught:
        run_recipe(composed(*words, folder=tmp_path))
    (line,) = [line for line in str(caught.value).splitlines() if "train" in line and "data=folder" in line]
    assert choice_of(composed(*words), "judge") == "judge=iou"
    again = shlex.split(line)[2:]
    assert again[-3:] == ["reference_training=few_masks", "candidates=own_candidates", "judge=agreement"]
    typed(*again)
    summary = run_recipe(composed(*again, folder=tmp_path))
    assert summary["policy"]["iou"]["n"] == 1


def test_answers_beside_the_data_are_named(data, tmp_path):
    source = FolderDataset(data / "masks")
    ranked = [replace(one, ranking=(0, 1, 2)) for one in source]
    write_folder(tmp_path / "ranked", ranked, source.classes)
    run = open_run(composed(*FAST, f"data.root={tmp_path / 'ranked'}", folder=tmp_path))
    with pytest.raises(ValueError, match=r"judge=agreement\n.*questions=answered$"):
        checks.check_judging(run, run.splits.train)
    answered = open_run(composed(*FAST, f"data.root={tmp_path / 'ranked'}", "questions=answered", folder=tmp_path))
    checks.check_judging(answered, answered.splits.train)


def test_a_run_knows_which_images_have_gold(data, tmp_path):
    run = opened(data, "some", tmp_path)
    every = np.arange(24, dtype=np.uint32)
    assert run.with_gold(every).tolist() == replace(run, has_gold=None).with_gold(every).tolist() == list(GOLD)
