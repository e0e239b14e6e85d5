"""Giving up a trial of a search in the middle of its training, when it falls behind the others."""

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from optuna import Trial, TrialPruned


class PruneTrial(Callback):
    """Report `metric` to the trial after each validation, and stop the run when the study's pruner says so.

    Steps are counted in validations, from 1: what min_resource of Hyperband and n_warmup_steps of the median mean.
    """

    def __init__(self, trial: Trial, metric: str) -> None:
        self.trial, self.metric = trial, metric
        self.validations = 0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse several processes: only one of them knows the trial, the others would train on."""
        if trainer.world_size > 1:
            raise ValueError(
                f"Expected a search to train on one device but got {trainer.world_size}; set trainer.devices=1 and "
                "start the search several times at once instead."
            )

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Report; raise TrialPruned if the trial is to be given up."""
        # Only while training: the validation of the final weights is the trial's value.
        if trainer.sanity_checking or trainer.state.fn != TrainerFn.FITTING:
            return
        if self.metric not in trainer.callback_metrics:
            raise ValueError(
                f"Expected the metric {self.metric!r} after validation but got "
                f"{', '.join(sorted(trainer.callback_metrics)) or 'none'}; set hparams_search.metric to one of them."
            )
        self.validations += 1
        value = float(trainer.callback_metrics[self.metric])
        self.trial.report(value, step=self.validations)
        if self.trial.should_prune():
            raise TrialPruned(f"{self.metric} = {value:.4g} after {self.validations} validations")
