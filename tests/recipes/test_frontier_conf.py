"""The frontier's variants are what they are called, and its sweep has all of them; online training uses its policy."""

import json

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from small import CONF, SMALL, composed, runs_of

from segdpo.inference.open import open_segmenter
from segdpo.models.reward_model import RewardModel, load_reward_model, save_reward_model
from segdpo.recipes.config import build, check_at_start
from segdpo.recipes.run import open_run, run_recipe

VARIANTS = sorted(path.stem for path in (CONF / "experiment" / "variant").glob("frontier_*.yaml"))
STRENGTHS = ("nearest", "near", "far", "farthest")
# The option that the strength of each variant sets.
ACTS = {
    "sft": "trainer.max_steps",
    "ppo": "algorithm.divergence.loss",
    "grpo": "algorithm.divergence.loss",
    "best_of": "best_of.k",
}


# On images of cells there is one anchored loss and one strength fewer.
SWEEPS = {
    "frontier": (VARIANTS, STRENGTHS),
    "frontier_bubil": (
        [variant for variant in VARIANTS if variant != "frontier_hold_nll_anchor"],
        ("nearest", "far", "farthest"),
    ),
}


@pytest.mark.parametrize("name", SWEEPS)
def test_a_sweep_has_its_variants_strengths_and_seeds(name, tmp_path):
    variants, strengths = SWEEPS[name]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        hydra = compose("train", [f"experiment={name}"], return_hydra_config=True).hydra
    runs = runs_of(hydra.sweeper.params)
    assert len({tuple(run) for run in runs}) == len(variants) * len(strengths) * 3
    assert {word for run in runs for word in run if word.startswith("experiment/variant=")} == {
        f"experiment/variant={variant}" for variant in variants
    }
    assert {word for run in runs for word in run if "strength=" in word} == {f"strength={one}" for one in strengths}
    assert hydra.sweep.dir == f"multirun/{name}"
    assert "experiment" in hydra.job.config.override_dirname.exclude_keys
    check_at_start(composed(f"experiment={name}", *runs[-1], folder=tmp_path))


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_variant_names_the_value_of_each_strength(variant, tmp_path):
    name = variant.removeprefix("frontier_")
    values = []
    for strength in STRENGTHS:
        config = composed(f"experiment/variant={variant}", f"strength={strength}", folder=tmp_path)
        assert config.frontier.method == name
        node = config
        for key in ACTS.get(name, "beta").split("."):
            node = node[key]
        assert config.frontier.value == (node[0] if name == "best_of" else node)
        values.append(config.frontier.value)
    # More steps and a larger K go farther; a larger beta and a larger coefficient of KL stay closer.
    assert values == sorted(set(values), reverse=name not in ("sft", "best_of"))
    target = config.task._target_.rpartition(".")[2].removeprefix("run_")
    if target == "preference":
        with initialize_config_dir(str(CONF), version_base="1.3"):
            assert config.loss == compose("train", [f"loss={name}", f"beta={config.beta}"]).loss
    else:
        assert target == ("best_of" if name == "best_of" else "policy_gradient")
        assert name == (config.algorithm.name if target == "policy_gradient" else "best_of")
    # Whatever rewards a policy is what defines preference, and what the table's reward is.
    assert config.judge._target_.endswith(".iou")
    assert "reward" not in config or config.reward._target_.endswith(".iou")


def test_online_rounds_judged_by_a_reward_model(tmp_path):
    """Candidates, judge and the reward of the frontier are the networks' own; rewards again, one mask at a time."""
    torch.manual_seed(0)
    path = tmp_path / "reward_model.safetensors"
    save_reward_model(path, RewardModel(classes=2, encoder_depth=2))
    own = ["rounds=2", "candidates.count=3", "reference_training.images=8", "callbacks=none", "logger=none"]
    judge = ["judge=reward_model", f"judge.model.path={path}"]
    config = composed("experiment=online_dpo", *SMALL, *own, *judge, folder=tmp_path)
    summary = run_recipe(config)
    assert summary["pairs"]["judgements"] > 0
    frontier, run = summary["frontier"], tmp_path / "run"
    assert frontier["kl"]["mean"] > 0
    assert frontier["judge"] == f"by_network(model.path={path}, model.classes=None)"
    assert (run / "round_1" / "policy.safetensors").exists()
    assert json.loads((run / "summary.json").read_text())["frontier"] == frontier
    opened, model = open_run(config), load_reward_model(path).eval()
    network, pipeline = open_segmenter(run)[0].eval(), build(config.transforms)["eval"]
    rewards = []
    for number in opened.splits.test:
        record = opened.source[int(number)]
        image = torch.from_numpy(pipeline(record.image, record.gold[None], np.random.default_rng(0)).image)[None]
        with torch.no_grad():
            rewards.append(model(image, (network(image)[:, 0] > 0).byte(), None).item())
    assert frontier["reward"]["mean"] == pytest.approx(np.mean(rewards), abs=1e-4)
