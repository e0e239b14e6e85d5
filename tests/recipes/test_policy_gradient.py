"""task=policy_gradient from the first image to summary.json, at a size for tests; its yamls; bad choices."""

import csv
import json

import pytest
import torch
from hydra.utils import instantiate
from small import CONF, SMALL, composed

from segdpo.models.reward_model import RewardModel, save_reward_model
from segdpo.models.weights import read_tensors
from segdpo.recipes.run import run_recipe
from segdpo.rl.algorithm import Algorithm

SHORT = [*SMALL, "callbacks=none", "task=policy_gradient", "algorithm.masks=4"]
NAMES = [(group, path.stem) for group in ("algorithm", "reward") for path in sorted((CONF / group).glob("*.yaml"))]


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return f"cache={tmp_path_factory.mktemp('cache')}"


def run_with(cache, folder, *choices):
    return run_recipe(composed(*SHORT, cache, f"run_folder={folder}", *choices))


@pytest.mark.parametrize(("group", "name"), NAMES)
def test_a_yaml_says_what_it_is_and_how_to_use_it(group, name):
    lines = (CONF / group / f"{name}.yaml").read_text().splitlines()
    assert lines[0].startswith("# ")
    assert lines[1].startswith("#   segdpo train task=policy_gradient ")
    assert f"{group}={name}" in lines[1]


def test_a_run_leaves_what_the_others_leave(cache, tmp_path):
    choices = ["algorithm.divergence.reward=0.01", "algorithm.value.per=pixel"]
    summary = run_with(cache, tmp_path, "trainer.max_steps=12", *choices)
    kept = json.loads((tmp_path / "summary.json").read_text())
    assert kept["policy"] == summary["policy"]
    assert set(summary) >= {"reference", "policy", "difference", "metric", "seconds", "validation"}
    assert set(summary["seconds"]) == {"reference", "policy", "comparison", "total"}
    assert summary["loss"] == "ppo"
    # 14 training images make 3 whole batches of 4; 5 epochs each: 5 + 5 + 2 steps.
    assert summary["rewards"] == {"asked": 3 * 4 * 4, "rollouts": 3, "masks": 4}
    weights = [read_tensors(tmp_path / f"{name}.safetensors") for name in ("policy", "reference")]
    assert all(name in weights[1] for name in weights[0])
    assert any(not torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    rows = list(csv.DictReader((tmp_path / "metrics.csv").open(newline="")))
    steps = [int(row["step"]) for row in rows if row["train/reward"]]
    assert steps == [5, 10, 12]
    first = next(row for row in rows if row["train/reward"])
    assert float(first["train/policy/kl"]) == pytest.approx(0, abs=1e-4)
    assert [row for row in rows if row["val/reward"]]


@pytest.mark.parametrize(
    "choices",
    [
        ["algorithm=grpo", "reward=dice", "algorithm.ratio=mask_mean", "algorithm.divergence.estimator=k3"],
        ["algorithm=reinforce", "reward=judge", "judge=boundary_iou", "logger=none"],
        ["reward=weighted", "data=shapes_multiclass", "algorithm.divergence.target=5", "algorithm.minibatches=2"],
        [
            "reference_training=few_masks",
            "reference_training.images=5",
            "algorithm.smoothness=2",
            "algorithm.divergence.loss=0",
            "logger=none",
        ],
    ],
    ids=str,
)
def test_choices_that_meet_in_a_run(choices, cache, tmp_path):
    summary = run_with(cache, tmp_path, "trainer.max_steps=2", *choices)
    assert 0 <= summary["policy"]["iou"]["mean"] <= 1
    assert summary["rewards"]["rollouts"] >= 1


def test_one_mask_an_image_is_refused_before_anything_is_trained(tmp_path):
    with pytest.raises(Exception, match=r"algorithm\.masks of at least 2 for grpo"):
        run_with(f"cache={tmp_path / 'cache'}", tmp_path / "run", "algorithm=grpo", "algorithm.masks=1")
    assert not (tmp_path / "cache").exists()


def test_rounds_are_refused(cache, tmp_path):
    with pytest.raises(ValueError, match=r"Expected rounds=1 with task=policy_gradient"):
        run_with(cache, tmp_path, "rounds=2")


def test_a_reward_model_of_other_classes_is_refused(cache, tmp_path):
    torch.manual_seed(0)
    save_reward_model(tmp_path / "reward_model.safetensors", RewardModel(classes=3, encoder_depth=3))
    with pytest.raises(ValueError, match=r"3.*classes|classes.*3"):
        run_with(
            cache, tmp_path / "run", "reward=reward_model", f"reward.model.path={tmp_path}/reward_model.safetensors"
        )


@pytest.mark.parametrize("name", ["ppo", "grpo", "reinforce"])
def test_settings_are_what_the_yamls_say(name):
    algorithm = instantiate(composed("task=policy_gradient", f"algorithm={name}").algorithm)
    assert isinstance(algorithm, Algorithm)
    assert algorithm.gradient_clip == 0.5
    assert (algorithm.divergence.loss, algorithm.masks, algorithm.smoothness) == (0.05, 32, 2.0)
    if name == "ppo":
        assert (algorithm.epochs, algorithm.entropy, algorithm.surrogate.keywords["clip"]) == (5, 0.0, 0.2)
    if name == "grpo":
        assert algorithm.surrogate.keywords == {"clip": 0.2, "clip_higher": 0.28}


@pytest.mark.untraced
@pytest.mark.parametrize("algorithm", ["ppo", "grpo"])
def test_it_raises_iou(algorithm, cache, tmp_path):
    """A reference of eight steps has much to learn; docs/methods/policy_gradient.md has the command for real ones."""
    choices = ["trainer.max_steps=60", "optimizer.lr=0.01", "algorithm.masks=16", "algorithm.smoothness=0"]
    choices += ["algorithm.epochs=2", "logger=none"]
    summary = run_with(cache, tmp_path, f"algorithm={algorithm}", *choices)
    assert summary["difference"]["iou"]["mean"] > 0.02
    assert summary["frontier"]["kl"]["mean"] > 0
