"""task=supervised: a network trained on masks and measured on gold masks."""

from collections.abc import Sequence

from lightning.pytorch import Callback

from segdpo.models import freeze_parts, load_weights, save_weights
from segdpo.recipes.compare import means_of, measure_on
from segdpo.recipes.config import build
from segdpo.recipes.fitting import fit, header_for, make_data, validate
from segdpo.recipes.run import Figures, Run
from segdpo.training import SupervisedTask


def run_supervised(run: Run, callbacks: Sequence[Callback]) -> Figures:
    """Train a network on masks and measure it on the test images."""
    config = run.config
    network = build(config.model, classes=len(run.classes))
    if config.reference_training.path is not None:
        load_weights(config.reference_training.path, network)
    network = build(config.adapter)(network)
    freeze_parts(network, config.freeze)
    data = make_data(config, run.source, run.splits)
    options = {"scheduler": build(config.scheduler), "window": run.preparation.window}
    task = SupervisedTask(network, build(config.sft_loss), build(config.optimizer), **options)
    fitted = fit(run, task, data, network, callbacks, "training")
    metric = validate(fitted, config.optimise)
    run.clock.lap("training")
    if not fitted.trainer.is_global_zero:
        return {}
    save_weights(run.folder / "policy.safetensors", network, header_for(run, adapter=True))
    measured = measure_on(run, network, run.splits.test, fitted.trainer.strategy.root_device, "network on test")
    golden = 0 if measured is None else len(measured.ids)
    summary: Figures = {"gold": {"images": len(run.splits.test), "with_gold": golden}, "metric": metric}
    return ({} if measured is None else {"policy": means_of(measured.values)}) | summary
