"""task=preference: a reference, preferences, a policy trained on them, and a comparison of both on gold masks."""

from collections.abc import Sequence

from lightning.pytorch import Callback

from segdpo.recipes.collect import answers_for_loss
from segdpo.recipes.compare import compare_policy
from segdpo.recipes.config import build
from segdpo.recipes.fitting import fit
from segdpo.recipes.gold import check_judging
from segdpo.recipes.reference import images_to_judge, train_or_load_reference
from segdpo.recipes.rounds import Round, check_rounds, rounds_of
from segdpo.recipes.run import Figures, Run
from segdpo.training import PreferenceTask


def run_preference(run: Run, callbacks: Sequence[Callback]) -> Figures:
    """Train a policy that starts as the reference on preferences, and compare the two."""
    check_rounds(run.config)
    check_judging(run, images_to_judge(run))
    reference = train_or_load_reference(run)
    for round_ in rounds_of(run, reference):
        fitted = fit(round_.run, make_task(round_), round_.data, round_.policy, callbacks)
    return compare_policy(run, round_, fitted, reference, answers_for_loss(run.config))


def make_task(round_: Round) -> PreferenceTask:
    """Return the LightningModule that trains the round's policy with the configuration's loss."""
    config = round_.run.config
    return PreferenceTask(
        round_.policy,
        build(config.reference)(round_.reference),
        build(config.loss),
        build(config.optimizer),
        scheduler=build(config.scheduler),
        beta=build(config.beta_schedule),
        hold_statistics=config.hold_statistics,
        starts_at_reference=round_.starts_at_reference,
        background=config.background,
        start=round_.reference,
        window=round_.run.preparation.window,
        low_resolution=config.low_resolution,
    )
