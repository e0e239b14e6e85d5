from types import SimpleNamespace

import optuna
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer

from segdpo.training import PruneTrial


def trainer_with(metrics):
    return SimpleNamespace(sanity_checking=False, state=SimpleNamespace(fn="fit"), callback_metrics=metrics)


class Falling(LightningModule):
    """Validates at .5, .4, .3 …, one epoch after the other."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.level = 0.5

    def training_step(self, batch, index):
        return self.weight.sum()

    def validation_step(self, batch, index):
        self.log("val/iou", self.level)

    def on_train_epoch_end(self):
        self.level -= 0.1

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def test_lightnings_own_loop_stops_at_the_validation_that_is_too_low(tmp_path):
    study = optuna.create_study(direction="maximize", pruner=optuna.pruners.ThresholdPruner(lower=0.35))
    trial = study.ask()
    trainer = Trainer(
        max_epochs=9,
        accelerator="cpu",
        logger=False,
        callbacks=[PruneTrial(trial, "val/iou")],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    data = torch.utils.data.DataLoader(torch.zeros(2, 1))
    with pytest.raises(optuna.TrialPruned, match=r"val/iou = 0.3 after 3 validations"):
        trainer.fit(Falling(), data, data)
    steps = study.trials[0].intermediate_values
    assert steps == {1: pytest.approx(0.5), 2: pytest.approx(0.4), 3: pytest.approx(0.3)}


def test_pruning_wants_one_device_and_its_metric():
    callback = PruneTrial(optuna.trial.FixedTrial({}), "val/iou")
    with pytest.raises(ValueError, match="one device but got 2"):
        callback.setup(SimpleNamespace(world_size=2), None, "fit")
    callback.setup(SimpleNamespace(world_size=1), None, "fit")
    trainer = trainer_with({"val/loss": torch.tensor(1.0)})
    trainer.sanity_checking = True
    callback.on_validation_end(trainer, None)
    trainer.sanity_checking, trainer.state.fn = False, "validate"  # of the final weights, after training
    callback.on_validation_end(trainer, None)
    assert callback.validations == 0
    trainer.state.fn = "fit"
    with pytest.raises(ValueError, match=r"the metric 'val/iou' after validation but got val/loss"):
        callback.on_validation_end(trainer, None)
