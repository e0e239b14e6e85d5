"""Comparing a policy with its reference on the test images, and what a run writes about it."""

from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from segdpo.data import Batch, DataModule, Numbers
from segdpo.losses import PreferenceLoss, dpo
from segdpo.metrics import mean_interval, paired_difference, win_rate
from segdpo.preferences import Network
from segdpo.recipes.collect import AnswersPerImage, count_answers
from segdpo.recipes.config import build
from segdpo.recipes.evaluation import Evaluation, write_evaluation
from segdpo.recipes.fitting import Fitted, validate
from segdpo.recipes.frontier import frontier_of
from segdpo.recipes.keep import measure_held_out, save_kept
from segdpo.recipes.measure import (
    WITHOUT_DISTANCES,
    Measured,
    Measurement,
    Values,
    measure_network,
    values_to_compare,
)
from segdpo.recipes.reference import Reference
from segdpo.recipes.rounds import Round
from segdpo.recipes.run import Figures, Run, peak_mib
from segdpo.reports import draw_panel
from segdpo.scores import predicted_classes
from segdpo.training import PAIRS, FrozenCopy, PreferenceTask, panel_rows

# The metrics in summary.json of a run; the folder evaluation/ has all.
OVERLAPS = ("iou", "dice")


def compare_policy(run: Run, last: Round, fitted: Fitted, reference: Reference, per_image: AnswersPerImage) -> Figures:
    """Measure a policy that was trained in rounds and write what the run leaves.

    Args:
        run: the run.
        last: its last round.
        fitted: what was trained in the last round.
        reference: the reference that the first round started from.
        per_image: how many answers judging K masks of an image takes.

    Returns:
        The run's part of summary.json; empty in all processes but the first.
    """
    metric = validate(fitted, run.config.optimise)
    tested = _measure_test_pairs(run, last, fitted, reference.network)
    if not fitted.trainer.is_global_zero:
        return {}
    device = fitted.trainer.strategy.root_device
    held_out = measure_held_out(run, last.policy.to(device), reference.network, last.data)
    kept = "policy" if run.config.keep == "always" or held_out.shows_a_gain else "reference"
    summary = compare_networks(run, last.policy, reference.network, last.data, device, kept=kept)
    summary |= {"held_out": held_out.summary(), "kept": {"rule": run.config.keep, "network": kept}}
    pairs = {name: tested.get(f"test/pairs/{name}") for name in PAIRS}
    counts = {"train": len(last.data.train_data()), "test": len(last.data.splits.test)}
    summary["pairs"] = counts | pairs | {"judgements": count_answers(last.preferences, per_image)}
    summary["metric"] = metric
    return summary


def compare_networks(
    run: Run,
    policy: nn.Module,
    reference: nn.Module,
    data: DataModule,
    device: torch.device,
    *,
    kept: str = "policy",
) -> Figures:
    """Save both networks, measure them on gold masks, and draw masks of both.

    Everything is measured of the trained policy, also where `kept`, the network that is saved as the policy, is the
    reference.

    Returns:
        Overlaps of both on the test images with their difference, the frontier, and the reference on the validation
        images.
    """
    save_kept(run, kept, policy, reference)
    both = {"policy": policy, "reference": reference}
    networks = {name: evaluated_network(run, network, device) for name, network in both.items()}
    summary = _compare_on_test(run, networks)
    before = measure_on(run, reference, run.splits.val, device, "reference on val")
    summary["validation"] = {} if before is None else {"reference": means_of(before.values)}
    _draw_test_panel(networks, data, run.folder / "panel.png")
    return summary


def measure_on(
    run: Run, network: nn.Module, images: Numbers, device: torch.device, description: str
) -> Measured | None:
    """Measure the overlap of a network's masks with gold on some images; None if there are none."""
    if not len(images):
        return None
    return measure_network(evaluated_network(run, network, device), _measurement(run, images, OVERLAPS), description)


def evaluated_network(run: Run, network: nn.Module, device: torch.device | str = "cpu") -> Network:
    """Return a network that predicts images as this run prepares them."""
    return Network(network, run.preparation, device)


def compare_overlaps(policy: Values, reference: Values) -> Figures:
    """Return the means of both networks' overlaps, and of their differences image by image, with intervals."""
    # An overlap is NaN only where the class is neither in the gold mask nor predicted.
    nothing = {"nothing": np.isnan(policy["iou"]), "reference_nothing": np.isnan(reference["iou"])}
    pairs = {name: values_to_compare(name, policy[name], reference[name], **nothing) for name in OVERLAPS}
    difference = {name: asdict(paired_difference(*pair)) for name, pair in pairs.items()}
    return {
        "policy": means_of(policy),
        "reference": means_of(reference),
        "difference": difference | {"win_rate": asdict(win_rate(*pairs["iou"]))},
    }


def means_of(values: Values) -> dict[str, Any]:
    """Return the means of IoU and Dice with their intervals."""
    return {name: asdict(mean_interval(values[name])) for name in OVERLAPS}


def _measure_test_pairs(run: Run, last: Round, fitted: Fitted, reference: nn.Module) -> Mapping[str, float]:
    """Return how the policy scores the test pairs against the first reference, whatever it was trained on."""
    if not len(last.data.splits.test):
        return {}
    task = fitted.task
    same_reference = run.config.rounds == 1
    if not (same_reference and isinstance(task, PreferenceTask) and task.loss.needs_reference):
        config = run.config
        loss = PreferenceLoss(partial(dpo, beta=1.0), score=build(config.score))
        frozen = FrozenCopy(reference)
        options = {"background": config.background, "start": reference, "window": run.preparation.window}
        task = PreferenceTask(last.policy, frozen, loss, build(config.optimizer), **options)
    found: Mapping[str, float] = fitted.trainer.test(task, datamodule=last.data, verbose=False)[0]
    return found


def _compare_on_test(run: Run, networks: Mapping[str, Network]) -> Figures:
    """Measure both networks on the test images and write the folder evaluation/.

    Distances between contours take longer than all other metrics; segdpo evaluate measures them.
    """
    peak = peak_mib()
    seconds = sum(run.clock.seconds.get(stage, 0.0) for stage in ("pairs", "policy"))
    measurement = _measurement(run, run.splits.test, WITHOUT_DISTANCES)
    if not len(measurement.numbers):
        return {}
    summary: Figures = {"gold": {"images": len(measurement.numbers), "with_gold": 0}}
    after, before = (measure_network(network, measurement, f"{name} on test") for name, network in networks.items())
    if after is not None and before is not None:
        evaluation = Evaluation(after, before)
        inputs = {"split": "test", "native": False}
        write_evaluation(run.folder / "evaluation", evaluation, networks, measurement, inputs)
        summary["gold"]["with_gold"] = len(after.ids)
        summary |= compare_overlaps(after.values, before.values)
    found = frontier_of(run, networks["policy"], networks["reference"])
    # Memory and seconds are those of the training, not of this comparison.
    summary["frontier"] = {**found, "peak_memory": peak, "seconds": seconds}
    return summary


def _measurement(run: Run, images: Numbers, metrics: tuple[str, ...]) -> Measurement:
    config = run.config
    return Measurement(
        run.source,
        images,
        metrics,
        background=config.background,
        seed=config.seed,
        measured_at=config.measured_at,
    )


@torch.no_grad()
def _draw_test_panel(networks: Mapping[str, Network], data: DataModule, path: Path, images: int = 6) -> None:
    """Draw the first test images with their chosen and rejected masks and the masks of both networks."""
    loaders = data.test_dataloader()
    if not loaders:
        return
    batch: Batch = next(iter(loaders[0] if isinstance(loaders, list) else loaders))
    masks = {name: predicted_classes(networks[name].logits(batch.image)) for name in ("reference", "policy")}
    draw_panel(panel_rows(batch, masks)[:images], path, classes=data.source.classes, title="test images")
