"""The story of `task=preference`: reference → preferences → policy → comparison."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch import Callback
from torch import nn

from segdpo.data import DataModule
from segdpo.models import has_adapter, save_adapter, save_weights
from segdpo.recipes.collect import Price, judgements, price_of
from segdpo.recipes.compare import compare_on_test, means_of, measure
from segdpo.recipes.config import Plain
from segdpo.recipes.fitting import Learn, header_for, learn_from_pairs, metric_of, pairs_on_test
from segdpo.recipes.reference import Reference, make_reference
from segdpo.recipes.rounds import check_rounds, walk
from segdpo.recipes.run import Clock, Setting, draw_test_panel, reset_peak
from segdpo.training import PAIRS


def run_preference(setting: Setting, callbacks: Sequence[Callback]) -> Plain:
    """Run the story; return its part of summary.json, or nothing in a further process of several."""
    return tell(setting, callbacks, learn_from_pairs, price_of(setting.config))


def tell(setting: Setting, callbacks: Sequence[Callback], learn: Learn, price: Price) -> Plain:
    """Run a story whose policy starts as the reference and learns as `learn` says; `price` counts the judgements."""
    config, clock = setting.config, Clock()
    check_rounds(config)
    reference = make_reference(config, setting.source, setting.splits)
    seconds = {"reference": clock.lap()}
    reset_peak()
    course = walk(setting, reference, callbacks, learn)
    clock.lap()
    lesson, learned = course.lesson, course.learned
    metric = metric_of(learned.trainer, learned.task, learned.data, config.optimise)
    tested = pairs_on_test(lesson, learned)
    if not learned.trainer.is_global_zero:
        return {}
    # What the road takes from the reference on, which all roads start from.
    took = sum(course.seconds.values())
    device = learned.trainer.strategy.root_device
    summary = finish(setting, lesson.policy, reference, lesson.data, device, took=took)
    summary["pairs"] = pairs_of(tested, lesson.data) | {"judgements": judgements(course.judged, price)}
    summary["metric"] = metric
    summary["seconds"] = seconds | course.seconds | {"comparison": clock.lap()}
    return summary


def finish(
    setting: Setting, policy: nn.Module, reference: Reference, data: DataModule, device: torch.device, *, took: float
) -> Plain:
    """Write the weights, compare policy and reference on gold, and draw both; `took`: the policy's seconds so far."""
    config, folder, classes = setting.config, setting.folder, setting.source.classes
    if has_adapter(policy):
        save_adapter(folder / "adapter", policy)
    save_weights(folder / "policy.safetensors", policy, header_for(config, classes, adapter=True))
    save_weights(folder / "reference.safetensors", reference.network, header_for(config, classes))
    summary = compare_on_test(setting, policy, reference.network, device, took=took)
    before = measure(setting, reference.network, setting.splits.val, device, "reference on val")
    summary["validation"] = {} if before is None else {"reference": means_of(before.values)}
    draw_test_panel(policy, reference.network, data, folder / "panel.png", device)
    return summary


def pairs_of(tested: Mapping[str, float], data: DataModule) -> dict[str, Any]:
    """Return how many images with pairs there were, and what the test pairs gave."""
    found = {name: tested.get(f"test/pairs/{name}") for name in PAIRS}
    return {"train": len(data.train_data()), "test": len(data.splits.test)} | found
