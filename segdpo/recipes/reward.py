"""The story of `task=reward`: preferences → a reward model → how far it can be trusted."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import numpy as np
from lightning.pytorch import Callback, seed_everything
from omegaconf import DictConfig
from torch import nn

from segdpo.losses import RewardLoss
from segdpo.models import save_reward_model
from segdpo.preferences import SCORES, for_ranking, for_rule
from segdpo.recipes.collect import Judged, asks_a_network, judgements, network_node, with_preferences
from segdpo.recipes.config import Plain, build, plain
from segdpo.recipes.fitting import description_of, fit, header_for, make_data, make_trainer, metric_of, take_final
from segdpo.recipes.reference import make_reference
from segdpo.recipes.reward_test import Trusted, trust
from segdpo.recipes.rounds import judged_of
from segdpo.recipes.run import Clock, Setting, check_class_count
from segdpo.training import JudgeScores, RewardTask


def run_reward(setting: Setting, callbacks: Sequence[Callback]) -> Plain:
    """Run the story; return its part of summary.json, or nothing in a further process of several."""
    config, clock = setting.config, Clock()
    if config.rounds != 1:
        raise ValueError(f"Expected rounds=1 for task=reward, which learns once, but got {config.rounds}.")
    judged, network = collect(setting)
    data = make_data(config, judged.source, judged.splits)
    seconds = {"pairs": clock.lap()}
    seed_everything(config.seed, workers=True, verbose=False)
    task = make_task(setting, judged)
    trainer = make_trainer(config, callbacks)
    fit(trainer, task, data, config)
    take_final(config, setting.folder, task.network)
    metric = metric_of(trainer, task, data, config.optimise)
    seconds["training"] = clock.lap()
    if not trainer.is_global_zero:
        return {}
    header = header_for(config, setting.source.classes)
    save_reward_model(setting.folder / "reward_model.safetensors", task.network, header)
    price = partial(for_rule, build(config.questions)) if task.loss.is_of_pairs else for_ranking
    trusted = Trusted(setting, task.network, data, network, trainer.strategy.root_device)
    summary = trust(trusted)
    return summary | {
        "loss": "reward model",  # the loss of the configuration is not asked
        "pairs": {
            "train": len(data.train_data()),
            "test": len(judged.splits.test),
            "accuracy": summary.get("reward_test", {}).get("accuracy", {}).get("mean"),
            "judgements": judgements([judged], price),
        },
        "metric": metric,
        "seconds": seconds | {"comparison": clock.lap()},
    }


def collect(setting: Setting) -> tuple[Judged, Plain]:
    """Return the preferences, and what builds the reference that candidates came from: nothing where none is asked."""
    config, splits, network = setting.config, setting.splits, Plain()
    if any(asks_a_network(plain(node)) for node in (config.candidates, config.selection, config.reward_test.other)):
        reference = make_reference(config, setting.source, splits)
        network = network_node(config, setting.source, reference.path)
        splits = replace(splits, train=judged_of(setting, reference))
    return with_preferences(config, setting.source, splits, network), network


def make_task(setting: Setting, judged: Judged) -> RewardTask:
    """Return the reward model with all that trains it."""
    config, classes = setting.config, setting.source.classes
    loss: RewardLoss = build(config.reward_loss)
    task = RewardTask(
        make_model(config, classes),
        loss,
        build(config.optimizer),
        scheduler=build(config.scheduler),
        judge_scores=scores_of(judged) if loss.margin_per_gap else None,
    )
    task.save_hyperparameters({"config": description_of(config, classes)})
    return task


def make_model(config: DictConfig, classes: Sequence[str]) -> nn.Module:
    """Return the reward model of the configuration for the classes of the data, untrained."""
    check_class_count(config, "reward_model", classes)
    description = description_of(config, classes)
    model: nn.Module = build(
        config.reward_model, classes=len(classes), mean=description["mean"], std=description["std"]
    )
    return model


def scores_of(judged: Judged) -> JudgeScores:
    """Return what the judge gave the masks of each record, by its id."""
    scores = {}
    for index in np.concatenate([judged.splits.train, judged.splits.val, judged.splits.test]):
        record = judged.source[int(index)]
        if record.pairs and SCORES not in record.meta:
            raise ValueError(
                f"Expected the judge's scores of record {record.id!r} for reward_loss.margin_per_gap but its "
                "preferences came without; set reward_loss.margin_per_gap=0, or let a judge make them "
                "(candidates=existing)."
            )
        scores[record.id] = np.array(record.meta.get(SCORES, "").split(), np.float64)
    return scores
