"""task=best_of: no training. Of K masks drawn from the reference for each test image, the one that the judge prefers.

The baseline for any training, with a known distance: KL(best of K ‖ sampling distribution) ≤ log K − (K − 1)/K. The
sampling distribution is the reference at temperature 1 without smooth noise, and otherwise what these make of it.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback
from numpy.typing import NDArray
from omegaconf import DictConfig

from segdpo.checks import IGNORE
from segdpo.data import Numbers, needs_gold
from segdpo.metrics import Doubles, best_of, best_of_kl_bound, mean_interval, mean_over_classes, measure_masks
from segdpo.preferences import Judge, Network
from segdpo.recipes.compare import OVERLAPS, compare_overlaps, evaluated_network
from segdpo.recipes.frontier import TestViews, View, draw_masks, judge_of, name_of, point_of, rewards, within_image
from segdpo.recipes.reference import train_or_load_reference
from segdpo.recipes.run import Figures, Run, peak_mib
from segdpo.recipes.typed import choice_of
from segdpo.scores import predicted_classes


@dataclass(frozen=True, eq=False)
class Drawn:
    """Masks drawn for one test image.

    Attributes:
        rewards: the judge's score of each mask.
        overlaps: IoU and Dice of each mask with the gold mask.
        greedy_reward: the score of the most probable mask.
        greedy_overlaps: its IoU and Dice.
    """

    rewards: Doubles
    overlaps: dict[str, Doubles]
    greedy_reward: float
    greedy_overlaps: dict[str, float]


def run_best_of(run: Run, callbacks: Sequence[Callback]) -> Figures:
    """Draw, judge and choose masks for the test images."""
    config = run.config
    sizes = checked_sizes(config.best_of.k, config.best_of.samples)
    if not len(run.splits.test):
        raise ValueError("Expected test images for task=best_of but there is none; raise datamodule.split.test.")
    judge = single_mask_judge(config)
    images = images_with_reward(run, judge)
    device = torch.device("cuda" if torch.cuda.is_available() and config.trainer.accelerator != "cpu" else "cpu")
    reference = train_or_load_reference(run)
    drawn = draw_all(run, evaluated_network(run, reference.network, device), judge, images)
    run.clock.lap("drawing")
    points = [_point(drawn, size, run.clock.seconds["drawing"]) for size in sizes]
    sampled = mean_interval([float(one.rewards.mean()) for one in drawn])
    greedy = mean_interval([one.greedy_reward for one in drawn])
    before = {"reward": asdict(greedy), "reward_sampled": asdict(sampled)}
    described = {"judge": name_of(config.judge), "peak_memory": peak_mib(), **point_of(config)}
    summary = _overlaps_of_best(drawn, sizes[-1])
    largest = {key: value for key, value in points[-1].items() if key not in ("k", "iou")}
    return {
        **summary,
        "loss": "best_of",
        "pairs": {"test": len(drawn)},
        "frontier": {**largest, "reference": before, **described, "points": points},
        "metric": summary["policy"]["iou"]["mean"],
    }


def checked_sizes(sizes: Sequence[int], samples: int) -> list[int]:
    """Return the values of K in order; refuse those that `samples` masks are too few for."""
    found = sorted({int(size) for size in sizes})
    if not found or found[0] < 1 or found[-1] > samples:
        raise ValueError(
            f"Expected best_of.k from 1 to best_of.samples={samples} but got {list(sizes)}; raise best_of.samples, or "
            "leave the larger values out."
        )
    return found


def single_mask_judge(config: DictConfig) -> Judge:
    """Return the judge of the configuration.

    Raises:
        ValueError: it compares candidates with each other and cannot score a single mask.
    """
    judge = judge_of(config)
    if judge is None:
        raise ValueError(
            f"Expected a judge of single masks for task=best_of but {name_of(config.judge)} compares candidates with "
            "each other; choose judge=iou or another that uses gold masks, or judge=reward_model."
        )
    return judge


def images_with_reward(run: Run, judge: Judge) -> Numbers:
    """Return the test images that the judge can score masks of: those with gold, if it needs it.

    Raises:
        ValueError: none has gold.
    """
    test = run.splits.test
    if not needs_gold(judge):
        return test
    gold = run.with_gold(test)
    if not len(gold):
        raise ValueError(
            f"Expected gold of some of the {len(test)} test images for {choice_of(run.config, 'judge')} but none has "
            "any; draw some, or choose judge=reward_model. Nothing has been trained."
        )
    return gold


@torch.no_grad()
def draw_all(run: Run, network: Network, judge: Judge, images: Numbers) -> list[Drawn]:
    """Draw masks for every image, and score them."""
    config, options = run.config, run.config.best_of
    found = []
    for view in TestViews(run.source, network, images, config.seed):
        logits = network.logits(view.image, view.record.id)
        drawn = draw_masks(
            view,
            logits,
            options.samples,
            config.seed,
            temperature=options.temperature,
            smooth=options.smoothness,
        )
        masks = np.concatenate([within_image(view, predicted_classes(logits)), drawn])
        scores = rewards(judge, view.record, masks, config.seed)
        overlaps = overlaps_of(run, view, masks)
        found.append(
            Drawn(
                scores[1:],
                {name: values[1:] for name, values in overlaps.items()},
                float(scores[0]),
                {name: float(values[0]) for name, values in overlaps.items()},
            )
        )
    return found


def overlaps_of(run: Run, view: View, masks: NDArray[np.uint8]) -> dict[str, Doubles]:
    """Return IoU and Dice of each mask with the gold mask; NaN without gold.

    Where the gold mask is empty, an empty mask has 1 if another mask of the image is not empty, and else NaN.
    """
    if view.record.gold is None:
        return {name: np.full(len(masks), np.nan) for name in OVERLAPS}
    gold = np.where(view.valid[0].numpy(), view.record.gold, IGNORE).astype(np.uint8)
    every = torch.from_numpy(gold)[None].expand(len(masks), *gold.shape)
    found = measure_masks(
        torch.from_numpy(masks), every, len(run.classes), background=run.config.background, names=OVERLAPS
    )
    means = {name: mean_over_classes(values).double().numpy() for name, values in found.items()}
    if np.isnan(means["iou"]).all():
        return means
    return {name: np.nan_to_num(values, nan=1.0) for name, values in means.items()}


def _point(drawn: Sequence[Drawn], size: int, seconds: float) -> dict[str, Any]:
    """Return the reward and IoU of the best of `size` masks, the bound on its KL, and its share of the seconds."""
    values = [best_of(one.rewards, one.rewards, size) for one in drawn]
    reward = asdict(mean_interval(values))
    distance = {"mean": best_of_kl_bound(size), "low": math.nan, "high": math.nan, "n": len(drawn)}
    iou = asdict(mean_interval([best_of(one.overlaps["iou"], one.rewards, size) for one in drawn]))
    share = seconds * size / len(drawn[0].rewards)
    return {"k": size, "reward": reward, "reward_sampled": reward, "kl": distance, "iou": iou, "seconds": share}


def _overlaps_of_best(drawn: Sequence[Drawn], size: int) -> Figures:
    """Return overlaps as other recipes do: `policy` is the best of `size` masks, `reference` the most probable mask."""
    after = {name: np.array([best_of(one.overlaps[name], one.rewards, size) for one in drawn]) for name in OVERLAPS}
    before = {name: np.array([one.greedy_overlaps[name] for one in drawn]) for name in OVERLAPS}
    return compare_overlaps(after, before)
