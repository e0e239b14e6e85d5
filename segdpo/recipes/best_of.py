"""The story of `task=best_of`: no training; of K masks drawn from the reference, the one that the judge likes best.

What any training has to beat, and how far it goes is known: KL(best of K ‖ drawn from) ≤ log K − (K − 1)/K. What is
drawn from is the reference itself at temperature 1 and without smooth noise, else what these turn it into.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback
from numpy.typing import NDArray

from segdpo.checks import IGNORE
from segdpo.metrics import Doubles, best_of, best_of_kl_bound, mean_interval, mean_over_classes, measure_masks
from segdpo.recipes.compare import (
    OVERLAPS,
    Seen,
    SeenImages,
    compare,
    draw,
    hidden,
    judge_of,
    name_of,
    network_of,
    point_of,
    rewards,
)
from segdpo.recipes.config import Plain
from segdpo.recipes.measure import Network, logits_of
from segdpo.recipes.reference import make_reference
from segdpo.recipes.run import Clock, Setting, peak_mib, reset_peak
from segdpo.scores import predicted_classes


@dataclass(frozen=True, eq=False)
class Drawn:
    """Masks of one test image: what the judge says of each, and its overlap with gold; the greedy mask's as well."""

    rewards: Doubles
    overlaps: dict[str, Doubles]
    greedy_reward: float
    greedy_overlaps: dict[str, float]


def run_best_of(setting: Setting, callbacks: Sequence[Callback]) -> Plain:
    """Draw, judge and choose on the test images; return this story's part of summary.json."""
    config, clock = setting.config, Clock()
    sizes = checked(config.best_of.k, config.best_of.samples)
    if not len(setting.splits.test):
        raise ValueError("Expected test images for task=best_of but there is none; raise datamodule.split.test.")
    device = torch.device("cuda" if torch.cuda.is_available() and config.trainer.accelerator != "cpu" else "cpu")
    reference = make_reference(config, setting.source, setting.splits)
    seconds = {"reference": clock.lap()}
    reset_peak()
    drawn = draw_all(setting, network_of(setting, reference.network), device)
    seconds["drawing"] = clock.lap()
    points = [point(drawn, size, seconds["drawing"]) for size in sizes]
    first = mean_interval([float(one.rewards.mean()) for one in drawn])
    before = {"reward": asdict(mean_interval([one.greedy_reward for one in drawn])), "reward_sampled": asdict(first)}
    named = {"judge": name_of(config.judge), "peak_memory": peak_mib(), **point_of(config)}
    summary = overlap_summary(drawn, sizes[-1])
    last = {key: value for key, value in points[-1].items() if key not in ("k", "iou")}
    return {
        **summary,
        "loss": "best_of",
        "pairs": {"test": len(drawn)},
        "frontier": {**last, "reference": before, **named, "points": points},
        "metric": summary["policy"]["iou"]["mean"],
        "seconds": seconds,
    }


def checked(sizes: Sequence[int], samples: int) -> list[int]:
    """Return the K in order; refuse those that `samples` masks cannot tell of."""
    found = sorted({int(size) for size in sizes})
    if not found or found[0] < 1 or found[-1] > samples:
        raise ValueError(
            f"Expected best_of.k from 1 to best_of.samples={samples} but got {list(sizes)}; draw more masks, or leave "
            "the larger ones out."
        )
    return found


@torch.no_grad()
def draw_all(setting: Setting, network: Network, device: torch.device) -> list[Drawn]:
    """Draw and judge the masks of every test image."""
    config = setting.config
    judge, chosen = judge_of(config), config.best_of
    if judge is None:
        raise ValueError(
            f"Expected a judge of single masks for task=best_of but {name_of(config.judge)} holds candidates against "
            "each other; choose judge=iou or another by gold, or judge=reward_model."
        )
    found = []
    for seen in SeenImages(setting.source, network, setting.splits.test, config.seed):
        logits = logits_of(network.module, seen.image, device, [seen.record.id])
        options = {"temperature": chosen.temperature, "smooth": chosen.smoothness}
        masks = np.concatenate(
            [hidden(seen, predicted_classes(logits)), draw(seen, logits, chosen.samples, config.seed, **options)]
        )
        scores = rewards(judge, seen.record, masks, config.seed)
        overlaps = overlaps_of(setting, seen, masks)
        found.append(
            Drawn(
                scores[1:],
                {name: values[1:] for name, values in overlaps.items()},
                float(scores[0]),
                {name: float(values[0]) for name, values in overlaps.items()},
            )
        )
    return found


def overlaps_of(setting: Setting, seen: Seen, masks: NDArray[np.uint8]) -> dict[str, Doubles]:
    """Return IoU and Dice of each mask with gold; NaN without gold.

    Where gold is empty, masks that are empty as well are right, 1, beside others that are not; if all are, none counts.
    """
    if seen.record.gold is None:
        return {name: np.full(len(masks), np.nan) for name in OVERLAPS}
    gold = np.where(seen.valid[0].numpy(), seen.record.gold, IGNORE).astype(np.uint8)
    every = torch.from_numpy(gold)[None].expand(len(masks), *gold.shape)
    classes, background = len(setting.source.classes), setting.config.background
    found = measure_masks(torch.from_numpy(masks), every, classes, background=background, names=OVERLAPS)
    means = {name: mean_over_classes(values).double().numpy() for name, values in found.items()}
    if np.isnan(means["iou"]).all():
        return means
    return {name: np.nan_to_num(values, nan=1.0) for name, values in means.items()}


def point(drawn: Sequence[Drawn], size: int, seconds: float) -> dict[str, Any]:
    """Return what the best of `size` masks is worth, with its bound on KL and its share of the time."""
    values = [best_of(one.rewards, one.rewards, size) for one in drawn]
    reward = asdict(mean_interval(values))
    far = {"mean": best_of_kl_bound(size), "low": math.nan, "high": math.nan, "n": len(drawn)}
    iou = asdict(mean_interval([best_of(one.overlaps["iou"], one.rewards, size) for one in drawn]))
    share = seconds * size / len(drawn[0].rewards)
    return {"k": size, "reward": reward, "reward_sampled": reward, "kl": far, "iou": iou, "seconds": share}


def overlap_summary(drawn: Sequence[Drawn], size: int) -> Plain:
    """Return the overlap with gold as other stories do: `policy` is the best of `size`, `reference` the plain mask."""
    after = {name: np.array([best_of(one.overlaps[name], one.rewards, size) for one in drawn]) for name in OVERLAPS}
    before = {name: np.array([one.greedy_overlaps[name] for one in drawn]) for name in OVERLAPS}
    return compare(after, before)
