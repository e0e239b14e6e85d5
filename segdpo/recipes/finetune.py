"""task=finetune: the baselines. As task=preference, but the policy is trained on one mask of each judged image.

The target is the chosen mask, a consensus of all candidates weighted by rank, or the gold mask: the upper bound. The
reference, the images, the steps and the optimiser are those of task=preference.
"""

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
from lightning.pytorch import Callback
from omegaconf import DictConfig

from segdpo.checks import check_choice
from segdpo.data import DataModule, SupervisedDataset
from segdpo.preferences import answers_for_ranking
from segdpo.recipes.collect import AnswersPerImage, answers_for_chosen
from segdpo.recipes.compare import compare_policy
from segdpo.recipes.config import build
from segdpo.recipes.fitting import fit
from segdpo.recipes.gold import check_gold, check_judging
from segdpo.recipes.reference import images_to_judge, train_or_load_reference
from segdpo.recipes.rounds import Round, check_rounds, rounds_of
from segdpo.recipes.run import Figures, Run
from segdpo.training import SupervisedTask

# The answers that each target needs; gold masks are drawn, not judged.
ANSWERS: dict[str, Callable[[DictConfig], AnswersPerImage]] = {
    "gold": lambda config: lambda masks: 0,
    "chosen": answers_for_chosen,
    "consensus": lambda config: answers_for_ranking,
}


def run_finetune(run: Run, callbacks: Sequence[Callback]) -> Figures:
    """Train a policy that starts as the reference on one mask an image, and compare the two."""
    config, target = run.config, run.config.finetune.target
    check_choice("finetune.target", target, ANSWERS)
    check_rounds(config)
    images = images_to_judge(run)
    check_judging(run, images)
    if target == "gold":
        check_gold(run, "finetune.target=gold", images, ["finetune.target=chosen"])
    reference = train_or_load_reference(run)
    for round_ in rounds_of(run, reference):
        fitted = fit(round_.run, make_task(round_), with_targets(round_.data, target), round_.policy, callbacks)
    summary = compare_policy(run, round_, fitted, reference, ANSWERS[target](config))
    if summary:
        summary["loss"] = f"finetune {target}"  # in the place of the configuration's loss, which is not used
    if summary and target == "gold":
        # Answers that the data came with are not needed either.
        summary["pairs"] |= {"judgements": 0, "gold_masks": summary["pairs"]["train"]}
    return summary


def make_task(round_: Round) -> SupervisedTask:
    """Return the LightningModule that trains the round's policy on masks."""
    config = round_.run.config
    return SupervisedTask(
        round_.policy,
        build(config.sft_loss),
        build(config.optimizer),
        scheduler=build(config.scheduler),
        background=config.background,
        hold_statistics=config.hold_statistics,
        start=round_.reference,
        window=round_.run.preparation.window,
    )


def with_targets(pairs: DataModule, target: str) -> DataModule:
    """Return loaders of the images that have pairs, in the same views and order, with a target instead of the pairs.

    Validation and test keep their pairs.
    """
    splits = pairs.splits.with_train(np.asarray(pairs.train_data().indices, np.uint32))
    return DataModule(
        pairs.source,
        pairs.train_pipeline,
        pairs.eval_pipeline,
        items=partial(SupervisedDataset, target=target),
        eval_items=pairs.eval_items,
        split=splits,
        batch_size=pairs.batch_size,
        workers=pairs.workers,
        views=pairs.views,
        seed=pairs.seed,
    )
