"""The story of `task=policy_gradient`: reference → a policy that climbs a reward → comparison."""

from collections.abc import Sequence
from dataclasses import replace

from lightning.pytorch import Callback, seed_everything
from torch import nn

from segdpo.recipes.config import Plain, build
from segdpo.recipes.fitting import description_of, fit, make_data, make_policy, make_trainer, metric_of, take_final
from segdpo.recipes.preference import finish
from segdpo.recipes.reference import make_reference
from segdpo.recipes.rounds import judged_of
from segdpo.recipes.run import Clock, Setting, reset_peak
from segdpo.rl import Algorithm, PolicyGradientTask, Reward


def run_policy_gradient(setting: Setting, callbacks: Sequence[Callback]) -> Plain:
    """Run the story; return its part of summary.json."""
    config, source, clock = setting.config, setting.source, Clock()
    if config.rounds != 1:
        raise ValueError(
            f"Expected rounds=1 with task=policy_gradient, which draws anew at every batch, but got {config.rounds}."
        )
    algorithm: Algorithm = build(config.algorithm)
    reward = build(config.reward)
    reference = make_reference(config, source, setting.splits)
    seconds = {"reference": clock.lap()}
    reset_peak()
    # Whether the reference was trained here or found must not change what is drawn from here on.
    seed_everything(config.seed, workers=True, verbose=False)
    policy = make_policy(config, reference.network)
    data = make_data(config, source, replace(setting.splits, train=judged_of(setting, reference)))
    task = make_task(setting, policy, reference.network, algorithm, reward)
    task.save_hyperparameters({"config": description_of(config, source.classes)})
    trainer = make_trainer(config, callbacks)
    fit(trainer, task, data, config)
    take_final(config, setting.folder, policy)
    seconds["policy"] = clock.lap()
    metric = metric_of(trainer, task, data, config.optimise)
    summary = finish(setting, policy, reference, data, trainer.strategy.root_device, took=seconds["policy"])
    summary["loss"] = algorithm.name  # the loss of the configuration is not asked
    summary["rewards"] = {"asked": task.rewards_computed, "rollouts": task.rollouts, "masks": algorithm.masks}
    summary["pairs"] = {"train": len(data.train_data()), "test": len(setting.splits.test)}
    summary["metric"] = metric
    summary["seconds"] = seconds | {"comparison": clock.lap()}
    return summary


def make_task(
    setting: Setting, policy: nn.Module, held: nn.Module, algorithm: Algorithm, reward: Reward
) -> PolicyGradientTask:
    """Return the policy with all that trains it; no reference is made where no divergence asks for one."""
    config = setting.config
    return PolicyGradientTask(
        policy,
        build(config.reference)(held) if algorithm.divergence.needs_reference else None,
        reward,
        algorithm,
        build(config.optimizer),
        classes=len(setting.source.classes),
        in_channels=setting.source[int(setting.splits.train[0])].image.shape[2],
        scheduler=build(config.scheduler),
        background=config.background,
        hold_statistics=config.hold_statistics,
        starts_at_reference=True,
    )
