"""task=policy_gradient: a policy that starts as the reference and is trained to raise a reward of its own masks."""

import logging
from collections.abc import Sequence

from lightning.pytorch import Callback, seed_everything
from torch import nn

from segdpo.data import Numbers, needs_gold
from segdpo.preferences import agreement, consensus
from segdpo.recipes.compare import compare_networks
from segdpo.recipes.config import build, function_of
from segdpo.recipes.fitting import fit, make_data, make_policy, validate
from segdpo.recipes.gold import check_gold, commands
from segdpo.recipes.reference import images_to_judge, train_or_load_reference
from segdpo.recipes.run import Figures, Run
from segdpo.recipes.typed import choice_of
from segdpo.rl import Algorithm, PolicyGradientTask, Reward

log = logging.getLogger(__name__)


def run_policy_gradient(run: Run, callbacks: Sequence[Callback]) -> Figures:
    """Train the policy with PPO, GRPO or REINFORCE, and compare it with the reference."""
    config = run.config
    if config.rounds != 1:
        raise ValueError(
            "Expected rounds=1 with task=policy_gradient, which draws new masks for every batch, but got "
            f"rounds={config.rounds}."
        )
    algorithm: Algorithm = build(config.algorithm)
    reward: Reward = build(config.reward)
    images = images_to_roll_out(run, reward)
    reference = train_or_load_reference(run)
    # What is drawn from here on must not depend on whether the reference was trained here or found in the cache.
    seed_everything(config.seed, workers=True, verbose=False)
    policy = make_policy(config, reference.network)
    data = make_data(config, run.source, run.splits.with_train(images))
    task = make_task(run, policy, reference.network, algorithm, reward)
    fitted = fit(run, task, data, policy, callbacks)
    run.clock.lap("policy")
    metric = validate(fitted, config.optimise)
    if not fitted.trainer.is_global_zero:
        return {}
    summary = compare_networks(run, policy, reference.network, data, fitted.trainer.strategy.root_device)
    summary["loss"] = algorithm.name  # in the place of the configuration's loss, which is not used
    summary["rewards"] = {"asked": task.rewards_computed, "rollouts": task.rollouts, "masks": algorithm.masks}
    summary["pairs"] = {"train": len(data.train_data()), "test": len(run.splits.test)}
    summary["metric"] = metric
    return summary


def images_to_roll_out(run: Run, reward: Reward) -> Numbers:
    """Return the training images that masks are drawn for: those with gold, if the reward needs it.

    Raises:
        ValueError: none of them has gold, or images would be left out because of the target of the loader alone.
    """
    config, images = run.config, images_to_judge(run)
    judge = getattr(reward, "keywords", {}).get("judge")
    if judge is not None and function_of(judge) in (agreement, consensus):
        raise ValueError(
            f"Expected a judge of single masks for reward=judge but {choice_of(config, 'judge')} compares candidates "
            "with each other; choose a judge that uses gold masks, or reward=reward_model."
        )
    if not needs_gold(reward):
        if config.datamodule["items"].get("target") == "gold":
            check_gold(run, "datamodule.items.target=gold", images, ["datamodule.items.target=none"])
        return images
    gold = run.with_gold(images)
    if not len(gold):
        seen = [["reference_training.judge_seen=true"]] if len(run.with_gold(run.splits.train)) else []
        raise ValueError(
            f"Expected gold of some of the {len(images)} training images that masks are drawn for, which "
            f"{choice_of(config, 'reward')} needs, but none has any; a reward model needs none "
            f"(reward=reward_model datamodule.items.target=none).{commands(*seen) if seen else ''}"
        )
    log.info("Masks are drawn for the %d of %d training images that have gold.", len(gold), len(images))
    return gold


def make_task(
    run: Run, policy: nn.Module, reference: nn.Module, algorithm: Algorithm, reward: Reward
) -> PolicyGradientTask:
    """Return the LightningModule that trains the policy; it has a reference only if a divergence asks for one."""
    config = run.config
    return PolicyGradientTask(
        policy,
        build(config.reference)(reference) if algorithm.divergence.needs_reference else None,
        reward,
        algorithm,
        build(config.optimizer),
        classes=len(run.classes),
        in_channels=run.source[int(run.splits.train[0])].image.shape[2],
        scheduler=build(config.scheduler),
        background=config.background,
        hold_statistics=config.hold_statistics,
        starts_at_reference=True,
        window=run.preparation.window,
    )
