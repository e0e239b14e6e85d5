"""The story of `task=supervised`: a network trained on masks, measured on gold."""

from collections.abc import Sequence

from lightning.pytorch import Callback

from segdpo.models import freeze_parts, load_weights, save_weights
from segdpo.recipes.compare import means_of, measure_on_test
from segdpo.recipes.config import Plain, build
from segdpo.recipes.fitting import description_of, fit, header_for, make_data, make_trainer, metric_of
from segdpo.recipes.run import Clock, Setting
from segdpo.training import SupervisedTask


def run_supervised(setting: Setting, callbacks: Sequence[Callback]) -> Plain:
    """Train and measure; return this story's part of summary.json, or nothing in a further process of several."""
    config, source, clock = setting.config, setting.source, Clock()
    network = build(config.model, classes=len(source.classes))
    if config.reference_training.path is not None:
        load_weights(config.reference_training.path, network)
    network = build(config.adapter)(network)
    freeze_parts(network, config.freeze)
    data = make_data(config, source, setting.splits)
    task = SupervisedTask(network, build(config.sft_loss), build(config.optimizer), scheduler=build(config.scheduler))
    task.save_hyperparameters({"config": description_of(config, source.classes)})
    trainer = make_trainer(config, callbacks)
    fit(trainer, task, data, config)
    metric = metric_of(trainer, task, data, config.optimise)
    seconds = {"training": clock.lap()}
    if not trainer.is_global_zero:
        return {}
    save_weights(setting.folder / "policy.safetensors", task.network, header_for(config, source.classes, adapter=True))
    measured = measure_on_test(setting, task.network, trainer.strategy.root_device, "network")
    return ({} if measured is None else {"policy": means_of(measured.values)}) | {
        "metric": metric,
        "seconds": seconds | {"comparison": clock.lap()},
    }
