"""The story of `task=preference`: reference → preferences → policy → comparison."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, seed_everything
from torch import nn

from segdpo.data.datamodule import DataModule
from segdpo.data.splits import Numbers
from segdpo.models.adapters import has_adapter, save_adapter
from segdpo.models.freezing import freeze_parts
from segdpo.models.weights import load_weights, save_weights
from segdpo.story.clock import Clock
from segdpo.story.compare import compare, means_of, measure, measure_on_test
from segdpo.story.configs import Plain, build
from segdpo.story.fitting import fit, make_data, make_trainer, metric_of
from segdpo.story.headers import description_of, header_for
from segdpo.story.outputs import draw_test_panel
from segdpo.story.preferences import with_preferences
from segdpo.story.reference import Reference, make_reference
from segdpo.story.setting import Setting
from segdpo.training.preference_task import PreferenceTask


def run(setting: Setting, callbacks: Sequence[Callback]) -> Plain:
    """Run the story; return its part of summary.json, or nothing in a further process of several."""
    config, clock = setting.config, Clock()
    reference = make_reference(config, setting.source, setting.splits)
    seconds = {"reference": clock.lap()}
    judged = judged_of(setting, reference)
    source, splits = with_preferences(config, setting.source, replace(setting.splits, train=judged), reference.path)
    data = make_data(config, source, splits)
    seconds["pairs"] = clock.lap()
    # Whether the reference was trained here or found must not change what is drawn from here on.
    seed_everything(config.seed, workers=True, verbose=False)
    task = make_task(setting, reference.network, data)
    trainer = make_trainer(config, callbacks)
    fit(trainer, task, data, config)
    seconds["policy"] = clock.lap()
    metric = metric_of(trainer, task, data, config.optimise)
    tested = trainer.test(task, datamodule=data, verbose=False) if len(splits.test) else [{}]
    if not trainer.is_global_zero:
        return {}
    summary = finish(setting, task.policy, reference, data, trainer.strategy.root_device)
    summary["pairs"] = pairs_of(tested[0], data)
    summary["metric"] = metric
    summary["seconds"] = seconds | {"comparison": clock.lap()}
    return summary


def finish(setting: Setting, policy: nn.Module, reference: Reference, data: DataModule, device: torch.device) -> Plain:
    """Write the weights, compare policy and reference on gold, and draw both."""
    config, folder, classes = setting.config, setting.folder, setting.source.classes
    if config.final == "best":
        load_weights(folder / "checkpoints" / "best.ckpt", policy)
    if has_adapter(policy):
        save_adapter(folder / "adapter.safetensors", policy)
    save_weights(folder / "policy.safetensors", policy, header_for(config, classes, adapter=True))
    save_weights(folder / "reference.safetensors", reference.network, header_for(config, classes))
    summary = compare(
        measure_on_test(setting, policy, device, "policy"),
        measure_on_test(setting, reference.network, device, "reference"),
    )
    before = measure(setting, reference.network, setting.splits.val, device, "reference on val")
    summary["validation"] = {} if before is None else {"reference": means_of(before.values)}
    draw_test_panel(policy, reference.network, data, folder / "panel.png", device)
    return summary


def judged_of(setting: Setting, reference: Reference) -> Numbers:
    """Return the training images that may be judged; with few masks, those without a mask of their own."""
    train = setting.splits.train
    if setting.config.start.judge_seen:
        return train
    rest = np.setdiff1d(train, reference.seen)
    if not len(rest):
        raise ValueError(
            f"Expected training images beyond the {len(reference.seen)} that the reference has seen but none is left; "
            "lower start.images, or set start.judge_seen=true."
        )
    return rest


def make_task(setting: Setting, network: nn.Module, data: DataModule) -> PreferenceTask:
    """Return the policy, as a copy of the reference, with all that trains it."""
    config = setting.config
    policy = build(config.adapter)(copy.deepcopy(network))
    freeze_parts(policy, config.freeze)
    task = PreferenceTask(
        policy,
        build(config.reference)(network),
        build(config.loss),
        build(config.optimizer),
        scheduler=build(config.scheduler),
        beta=build(config.beta_schedule),
        hold_statistics=config.hold_statistics,
        starts_at_reference=True,
        background=config.background,
    )
    # Into every checkpoint, so that the network can be built again from the file alone.
    task.save_hyperparameters({"config": description_of(config, setting.source.classes)})
    return task


def pairs_of(tested: Mapping[str, float], data: DataModule) -> dict[str, Any]:
    """Return how many images with pairs there were, and what the test pairs gave."""
    found = {name: tested.get(f"test/pairs/{name}") for name in ("accuracy", "margin", "chosen_gain")}
    return {"train": len(data.train_data()), "test": len(data.splits.test)} | found
