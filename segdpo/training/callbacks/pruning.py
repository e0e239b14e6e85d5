"""Stopping the trials of a search early."""

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from optuna import Trial, TrialPruned


class PruneTrial(Callback):
    """Report `metric` to an Optuna trial after each validation, and stop the run when the study's pruner says so.

    Steps are counted in validations, from 1; Hyperband's min_resource and the median pruner's n_warmup_steps count
    the same.
    """

    def __init__(self, trial: Trial, metric: str) -> None:
        self.trial, self.metric = trial, metric
        self.validations = 0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse several processes: only one of them has the trial, the others would not stop."""
        if trainer.world_size > 1:
            raise ValueError(
                f"Expected a search to train on one device but got {trainer.world_size}; set trainer.devices=1 and "
                "start the search several times at once instead."
            )

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Report the metric; raise TrialPruned if the trial is to be stopped."""
        # Only during training: the validation of the final weights is the trial's value.
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
