"""task=reward: a reward model trained on preferences, and how far it can be trusted."""

from collections.abc import Sequence
from functools import partial

import numpy as np
from lightning.pytorch import Callback, seed_everything
from omegaconf import DictConfig
from torch import nn

from segdpo.data import Pipeline
from segdpo.losses import RewardLoss
from segdpo.models import save_reward_model
from segdpo.preferences import SCORES, answers_for, answers_for_ranking
from segdpo.recipes.collect import Preferences, collect_preferences, count_answers, needs_network
from segdpo.recipes.config import build
from segdpo.recipes.fitting import fit, header_for, make_data, validate
from segdpo.recipes.gold import check_judging
from segdpo.recipes.reference import images_to_judge, train_or_load_reference
from segdpo.recipes.reward_test import RewardTest, run_reward_test
from segdpo.recipes.run import Figures, Run, check_class_count
from segdpo.training import JudgeScores, RewardTask


def run_reward(run: Run, callbacks: Sequence[Callback]) -> Figures:
    """Train a reward model on preferences and test it on held-out pairs, on other masks, and under attack."""
    config = run.config
    if config.rounds != 1:
        raise ValueError(f"Expected rounds=1 for task=reward, which trains once, but got rounds={config.rounds}.")
    other = build(config.reward_test.other)
    asks = needs_network(config, other)
    images = images_to_judge(run) if asks else run.splits.train
    check_judging(run, images)
    reference = train_or_load_reference(run) if asks else None
    network = None if reference is None else reference.network
    weights = None if reference is None else reference.path
    preferences = collect_preferences(run, images, network, weights=weights)
    data = make_data(config, preferences.source, preferences.splits)
    run.clock.lap("pairs")
    seed_everything(config.seed, workers=True, verbose=False)
    task = make_task(run, preferences)
    fitted = fit(run, task, data, task.network, callbacks, "training")
    metric = validate(fitted, config.optimise)
    run.clock.lap("training")
    if not fitted.trainer.is_global_zero:
        return {}
    save_reward_model(run.folder / "reward_model.safetensors", task.network, header_for(run))
    tested = run_reward_test(RewardTest(run, task.network, data, network, fitted.trainer.strategy.root_device))
    per_image = partial(answers_for, build(config.questions)) if task.loss.is_of_pairs else answers_for_ranking
    pairs = {
        "train": len(data.train_data()),
        "test": len(preferences.splits.test),
        "accuracy": tested.get("accuracy", {}).get("mean"),
        "judgements": count_answers([preferences], per_image),
    }
    # "loss" in the place of the configuration's loss, which is not used.
    summary = {"loss": "reward model", "pairs": pairs, "metric": metric}
    return ({"reward_test": tested} if tested else {}) | summary


def make_task(run: Run, preferences: Preferences) -> RewardTask:
    """Return the LightningModule that trains the reward model of the configuration."""
    config = run.config
    loss: RewardLoss = build(config.reward_loss)
    return RewardTask(
        make_model(config, run.classes),
        loss,
        build(config.optimizer),
        scheduler=build(config.scheduler),
        judge_scores=scores_of(preferences) if loss.margin_per_gap else None,
    )


def make_model(config: DictConfig, classes: Sequence[str]) -> nn.Module:
    """Return the untrained reward model of the configuration for the classes of the data."""
    check_class_count(config, "reward_model", classes)
    views: Pipeline = build(config.transforms.eval)
    model: nn.Module = build(config.reward_model, classes=len(classes), mean=views.mean, std=views.std)
    return model


def scores_of(preferences: Preferences) -> JudgeScores:
    """Return the judge's scores of the masks of each record, by the record's id.

    Raises:
        ValueError: a record has preferences but no scores.
    """
    splits, scores = preferences.splits, {}
    for index in np.concatenate([splits.train, splits.val, splits.test]):
        record = preferences.source[int(index)]
        if record.pairs and SCORES not in record.meta:
            raise ValueError(
                f"Expected the judge's scores of record {record.id!r} for reward_loss.margin_per_gap but its "
                "preferences came without; set reward_loss.margin_per_gap=0, or let a judge make them "
                "(questions=best_worst)."
            )
        scores[record.id] = np.array(record.meta.get(SCORES, "").split(), np.float64)
    return scores
