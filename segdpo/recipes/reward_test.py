"""How far a reward model can be trusted: on held-out pairs, on other masks, under attack."""

import csv
import io
import logging
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from scipy import stats
from torch import Tensor, nn

from segdpo.checks import IGNORE
from segdpo.data import DataModule, PairBatch, RankingBatch, record_rng
from segdpo.files import write_atomically
from segdpo.metrics import Calibration, mean_interval, paired_difference, per_image_overlap
from segdpo.models import reward_inputs, soft_inputs
from segdpo.preferences import Judge, by_network, distinct
from segdpo.recipes.collect import asking_the_reference
from segdpo.recipes.config import Plain, build, plain
from segdpo.recipes.run import Setting
from segdpo.reports import draw_attack
from segdpo.training import PreferenceBatch, margins_of, rewards_of, share_ahead

log = logging.getLogger(__name__)

# How sure the mask is of its own classes before the first step.
SURE = 0.9


@dataclass(frozen=True, eq=False)
class Climb:
    """What became of some masks, float32 [steps + 1, masks] each, the first row before the first step.

    `reward` and `iou` are those of the mask that the most probable classes give, `soft_reward` that of the
    probabilities that were pushed.
    """

    soft_reward: Tensor
    reward: Tensor
    iou: Tensor


def attack_on_test(setting: Setting, model: nn.Module, batches: Iterable[PreferenceBatch]) -> Plain:
    """Attack on the first test images from the worst mask of each; write attack.csv and attack.png, return the ends."""
    options = setting.config.reward_test.attack
    if not options.images:
        return {}
    climbs: list[Climb] = []
    ids: list[str] = []
    for batch in batches:
        if batch.gold is None or len(ids) >= options.images:
            break
        start, gold = worst_masks(batch), batch.gold.masked_fill(~batch.valid, IGNORE)
        kept = slice(0, options.images - len(ids))
        climbs.append(
            climb(
                model,
                batch.image[kept],
                start[kept],
                gold[kept],
                steps=options.steps,
                step_size=options.step_size,
                background=setting.config.background,
            )
        )
        ids += batch.ids[kept]
    if not climbs:
        log.warning("Expected gold masks of test images to attack the reward model on but there is none; no attack.")
        return {}
    whole = Climb(*(torch.cat([getattr(one, name) for one in climbs], 1) for name in Climb.__dataclass_fields__))
    write_atomically(setting.folder / "attack.csv", as_csv(whole, ids).encode())
    draw_attack(whole.reward.tolist(), whole.iou.tolist(), setting.folder / "attack.png")
    return ends_of(whole)


def climb(
    model: nn.Module,
    image: Tensor,
    masks: Tensor,
    gold: Tensor,
    *,
    steps: int,
    step_size: float,
    background: bool = False,
) -> Climb:
    """Push the soft classes of masks [P, H, W], one an image, up the reward; `step_size`: mean move of a logit a step.

    Pixels that a mask ignores stay ignored. The model needs `of_inputs` and `classes`, as those of this package have.
    """
    asked: Any = model
    classes: int = asked.classes
    given = reward_inputs(image, masks, None, classes)
    own = torch.nn.functional.one_hot(masks.masked_fill(~given.known, 0).long(), classes).movedim(-1, 1)
    logits = torch.where(own.bool(), SURE, (1 - SURE) / (classes - 1)).log()
    rows: list[tuple[Tensor, Tensor, Tensor]] = []
    for step in range(steps + 1):
        logits.requires_grad_(True)
        soft: Tensor = asked.of_inputs(soft_inputs(image, logits.softmax(1), given.known))
        hard = logits.detach().argmax(1).byte().masked_fill(~given.known, IGNORE)
        with torch.no_grad():
            iou = per_image_overlap(hard, gold, classes, background)["iou"]
            rows.append((soft.detach(), model(image, hard), iou))
        if step < steps:
            (gradient,) = torch.autograd.grad(soft.sum(), logits)
            size = gradient.abs().flatten(1).mean(1).clamp(min=torch.finfo(gradient.dtype).tiny)
            logits = logits.detach() + step_size * gradient / size[:, None, None, None]
    return Climb(*(torch.stack(column).float().cpu() for column in zip(*rows, strict=True)))


def worst_masks(batch: PreferenceBatch) -> Tensor:
    """Return the rejected mask of each image's first pair, or the last of its ranking."""
    if not isinstance(batch, PairBatch):
        return batch.ranking[:, -1]
    images = torch.arange(len(batch.image), device=batch.image_index.device)
    return batch.rejected[(batch.image_index == images[:, None]).int().argmax(1)]


def ends_of(whole: Climb) -> dict[str, Any]:
    """Return where the climb began and ended, and at which step the true quality was best."""
    mean = whole.iou.nanmean(1)
    best = int(mean.nan_to_num(-1).argmax())
    return {
        "steps": len(whole.iou) - 1,
        "reward": {"start": asdict(mean_interval(whole.reward[0])), "end": asdict(mean_interval(whole.reward[-1]))},
        "iou": {
            "start": asdict(mean_interval(whole.iou[0])),
            "end": asdict(mean_interval(whole.iou[-1])),
            "difference": asdict(paired_difference(whole.iou[-1], whole.iou[0])),
            "best": float(mean[best]),
            "best_step": best,
        },
    }


def as_csv(whole: Climb, ids: Iterable[str]) -> str:
    """Return a row for each step of each image."""
    names = list(ids)
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["step", "image", "soft_reward", "reward", "iou"])
    for step in range(len(whole.iou)):
        for number, name in enumerate(names):
            values = (getattr(whole, column)[step, number].item() for column in ("soft_reward", "reward", "iou"))
            writer.writerow([step, name, *(f"{value:.6g}" for value in values)])
    return file.getvalue()


@dataclass(frozen=True, eq=False)
class Trusted:
    """A trained reward model, the pairs it learned on with their test images, and what builds the reference."""

    setting: Setting
    model: nn.Module
    data: DataModule
    network: Plain
    device: torch.device


def trust(trusted: Trusted) -> Plain:
    """Return what the test images say of the reward model, for summary.json; nothing if there are none."""
    if not len(trusted.data.splits.test):
        return {}
    trusted.model.to(trusted.device).eval()
    found = held_out(trusted) | {"other": on_other_masks(trusted)}
    batches = test_batches(trusted)
    attack = attack_on_test(trusted.setting, trusted.model, batches)
    return {"reward_test": found | ({"attack": attack} if attack else {})}


def test_batches(trusted: Trusted) -> Iterator[PreferenceBatch]:
    """Give the test images with their pairs, in order."""
    # Not data.test_dataloader(), which after a training of several processes would give this one its share alone.
    items: Any = trusted.data.eval_data(trusted.data.splits.test)
    for start in range(0, len(items), trusted.data.batch_size):
        numbers = range(start, min(start + trusted.data.batch_size, len(items)))
        batch = items.collate([items[number] for number in numbers])
        assert isinstance(batch, PairBatch | RankingBatch)
        yield batch.to(trusted.device)


@torch.no_grad()
def held_out(trusted: Trusted) -> Plain:
    """Return accuracy on the test pairs, a mean over images, and whether σ(R⁺ − R⁻) is as often right as it is sure."""
    shares: list[float] = []
    margins: list[torch.Tensor] = []
    for batch in test_batches(trusted):
        ahead = margins_of(rewards_of(trusted.model, batch)).cpu()
        image = torch.arange(len(ahead)) if isinstance(batch, RankingBatch) else batch.image_index.cpu()
        for number in range(len(batch.ids)):
            shares.append(float(share_ahead(ahead[image == number]).double().mean()))
        margins.append(ahead.flatten())
    whole = torch.cat(margins)
    calibration = Calibration(sync_on_compute=False)
    # Each pair is a pixel whose truth is "the chosen mask": confidence is that in whichever mask the model prefers.
    calibration.update(whole[None, None], torch.ones_like(whole[None], dtype=torch.int64))
    sure = calibration.compute()
    return {
        "accuracy": asdict(mean_interval(shares)),
        "pairs": len(whole),
        "ece": float(sure["ece"]),
        "brier": float(sure["brier"]),
    }


def on_other_masks(trusted: Trusted) -> Plain:
    """Return the rank correlations of rewards with true quality, image by image, on masks of `reward_test.other`.

    An image whose masks all have one quality, or one reward, has no correlation; it is counted in `without`. One that
    the source has no masks for, or that has no gold, is `left_out`.
    """
    config, source = trusted.setting.config, trusted.setting.source
    views = plain(config.transforms.eval)
    masks_of = build(asking_the_reference(plain(config.reward_test.other), trusted.network, views))
    truth: Judge = build(config.reward_test.truth)
    rewards = partial(
        by_network, model=trusted.model, device=str(trusted.device), views=build(config.transforms)["eval"]
    )
    found: list[tuple[float, float]] = []
    left_out: list[str] = []
    for index in trusted.setting.splits.test:
        record = source[int(index)]
        rng = record_rng(config.seed, record.id, "judge")
        try:
            masks = distinct(masks_of(record, record_rng(config.seed, record.id, "reward test"))).masks
            quality = truth(record, masks, rng)
        except ValueError as error:  # nothing to corrupt, no gold to judge by
            left_out.append(str(error))
            continue
        found.append(correlations(quality, rewards(record, masks, rng)))
    if left_out:
        log.warning("%d images are left out of the rank correlations; the first: %s", len(left_out), left_out[0])
    kendall, spearman = np.array(found, np.float64).reshape(-1, 2).T
    return {
        "kendall": asdict(mean_interval(kendall)),
        "spearman": asdict(mean_interval(spearman)),
        "without": int(np.isnan(kendall).sum()),
        "left_out": len(left_out),
    }


def correlations(truth: np.ndarray, rewards: np.ndarray) -> tuple[float, float]:
    """Return Kendall's τ_b and Spearman's ρ; NaN where either list is constant.

    >>> correlations(np.array([1.0, 2.0, 3.0]), np.array([0.1, 0.3, 0.2]))
    (0.33333333333333337, 0.5)
    """
    if len(truth) < 2 or not np.ptp(truth) or not np.ptp(rewards):
        return float("nan"), float("nan")
    return float(stats.kendalltau(truth, rewards).statistic), float(stats.spearmanr(truth, rewards).statistic)
