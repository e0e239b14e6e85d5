"""The last stage: policy and reference on images that neither has seen, judged by gold."""

from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch import nn

from segdpo.data.splits import Numbers
from segdpo.metrics.statistics import mean_interval, paired_difference, win_rate
from segdpo.story.configs import Plain, build
from segdpo.story.evaluation import Evaluated, write_evaluation
from segdpo.story.evaluation_measure import CHEAP, Examination, Measured, Network, Values, measure_network
from segdpo.story.evaluation_pairs import credited
from segdpo.story.frontier import frontier_of
from segdpo.story.headers import description_of
from segdpo.story.memory import peak_mib
from segdpo.story.setting import Setting

# What summary.json of a run says; evaluation/ beside it has all the metrics.
OVERLAPS = ("iou", "dice")


def compare_on_test(
    setting: Setting, policy: nn.Module, reference: nn.Module, device: torch.device, *, took: float
) -> Plain:
    """Measure both on the test images, write all of it to evaluation/, and return what summary.json says of it.

    Distances between contours are left to scripts/evaluate.py: they take longer than all the rest. `frontier` says what
    the policy gained, by the judge, and how far it went for that; its peak of memory is that of what came before, and
    its seconds are those that it `took`.
    """
    peak = peak_mib()
    networks = {"policy": network_of(setting, policy), "reference": network_of(setting, reference)}
    examination = examination_of(setting, setting.splits.test, CHEAP)
    after, before = (
        measure_network(network, examination, device, f"{name} on test") if len(examination.numbers) else None
        for name, network in networks.items()
    )
    summary: Plain = {}
    if after is not None and before is not None:
        evaluated = Evaluated(after, before)
        write_evaluation(setting.folder / "evaluation", evaluated, networks, examination, device, {"split": "test"})
        summary = compare(after.values, before.values)
    if len(examination.numbers):
        found = frontier_of(setting, networks["policy"], networks["reference"], device)
        summary["frontier"] = {**found, "peak_memory": peak, "seconds": took}
    return summary


def measure_on_test(setting: Setting, network: nn.Module, device: torch.device, say: str) -> Measured | None:
    """Measure a network on the gold of the test images; None if there are none."""
    return measure(setting, network, setting.splits.test, device, f"{say} on test")


def measure(
    setting: Setting,
    network: nn.Module,
    images: Numbers,
    device: torch.device,
    say: str,
) -> Measured | None:
    """Measure a network on the gold of some images; None if there are none."""
    if not len(images):
        return None
    return measure_network(network_of(setting, network), examination_of(setting, images, OVERLAPS), device, say)


def network_of(setting: Setting, network: nn.Module) -> Network:
    """Return a network of this run with the pipeline by which the run evaluates."""
    description = description_of(setting.config, setting.source.classes)
    pipeline = build(setting.config.transforms)["eval"]
    return Network(network, pipeline, tuple(description["mean"]), tuple(description["std"]))


def examination_of(setting: Setting, images: Numbers, metrics: tuple[str, ...]) -> Examination:
    """Return what the run measures on these images."""
    config = setting.config
    return Examination(
        setting.source,
        images,
        metrics,
        background=config.background,
        batch_size=config.datamodule.batch_size,
        seed=config.seed,
    )


def compare(policy: Values, reference: Values) -> Plain:
    """Return what summary.json says of the overlaps of both, and of the difference image by image."""
    # An overlap is NaN where there is nothing and nothing is found, and nowhere else.
    nothing = {"nothing": np.isnan(policy["iou"]), "reference_nothing": np.isnan(reference["iou"])}
    pairs = {name: credited(name, policy[name], reference[name], **nothing) for name in OVERLAPS}
    difference = {name: asdict(paired_difference(*pair)) for name, pair in pairs.items()}
    return {
        "policy": means_of(policy),
        "reference": means_of(reference),
        "difference": difference | {"win_rate": asdict(win_rate(*pairs["iou"]))},
    }


def means_of(values: Values) -> dict[str, Any]:
    """Return the mean of IoU and Dice with its interval."""
    return {name: asdict(mean_interval(values[name])) for name in OVERLAPS}
