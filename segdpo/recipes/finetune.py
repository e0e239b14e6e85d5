"""The story of `task=finetune`: the same as task=preference, but the policy learns masks rather than preferences.

What any preference loss has to beat: the same reference, images, steps and optimiser, and as a target of each image
that was judged its chosen mask, a consensus of all its candidates weighted by rank, or gold: the ceiling.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
from lightning.pytorch import Callback
from omegaconf import DictConfig

from segdpo.data import DataModule, SupervisedDataset
from segdpo.preferences import for_ranking
from segdpo.recipes.collect import Price, for_chosen
from segdpo.recipes.config import Plain, build
from segdpo.recipes.fitting import Learned, Lesson, train
from segdpo.recipes.preference import tell
from segdpo.recipes.run import Setting
from segdpo.training import SupervisedTask

# What a target costs in judgements of K masks; a drawn mask takes none.
PRICES: dict[str, Callable[[DictConfig], Price]] = {
    "gold": lambda config: lambda masks: 0,
    "chosen": for_chosen,
    "consensus": lambda config: for_ranking,
}


def run_finetune(setting: Setting, callbacks: Sequence[Callback]) -> Plain:
    """Run the story; return its part of summary.json, or nothing in a further process of several."""
    target = setting.config.finetune.target
    if target not in PRICES:
        raise ValueError(f"Expected finetune.target to be one of {', '.join(PRICES)} but got {target}.")
    summary = tell(setting, callbacks, learn_from_masks, PRICES[target](setting.config))
    if summary:
        summary["loss"] = f"finetune {target}"  # the loss of the configuration is not asked
    if summary and target == "gold":
        # Those that come with their own preferences are not paid for here either.
        summary["pairs"] |= {"judgements": 0, "gold_masks": summary["pairs"]["train"]}
    return summary


def learn_from_masks(lesson: Lesson, callbacks: Sequence[Callback]) -> Learned:
    """Train on one target an image."""
    config = lesson.setting.config
    task = SupervisedTask(
        lesson.policy,
        build(config.sft_loss),
        build(config.optimizer),
        scheduler=build(config.scheduler),
        background=config.background,
        hold_statistics=config.hold_statistics,
    )
    return train(lesson, task, targets_of(config, lesson.data), callbacks)


def targets_of(config: DictConfig, pairs: DataModule) -> DataModule:
    """Return the images that have pairs, in the same views and order, with a target in the place of their pairs."""
    splits = replace(pairs.splits, train=np.asarray(pairs.train_data().indices, np.uint32))
    return DataModule(
        pairs.source,
        pairs.train_pipeline,
        pairs.eval_pipeline,
        items=partial(SupervisedDataset, target=config.finetune.target),
        eval_items=partial(SupervisedDataset, target="gold"),
        split=splits,
        batch_size=pairs.batch_size,
        workers=pairs.workers,
        views=pairs.views,
        seed=pairs.seed,
    )
