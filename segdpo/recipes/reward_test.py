"""How far a reward model can be trusted: on held-out pairs, on masks of another source, under attack."""

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
from segdpo.preferences import Judge, asks_network, by_network, distinct, with_network
from segdpo.recipes.collect import network_to_ask
from segdpo.recipes.config import Plain, build
from segdpo.recipes.run import Run
from segdpo.reports import draw_attack
from segdpo.training import PreferenceBatch, margins_of, rewards_of, share_ahead

log = logging.getLogger(__name__)

# The probability that a mask under attack gives its own classes before the first step.
INITIAL_PROBABILITY = 0.9


@dataclass(frozen=True, eq=False)
class RewardTest:
    """What a reward model is tested with.

    Attributes:
        run: its splits have the test images, its configuration the options `reward_test`.
        model: the trained reward model.
        data: loaders of the preferences it was trained on, with those of the test images.
        network: asked for candidates by sources that need one; None if none does.
        device: where the model runs.
    """

    run: Run
    model: nn.Module
    data: DataModule
    network: nn.Module | None
    device: torch.device

    def batches(self) -> Iterator[PreferenceBatch]:
        """Yield the test images with their preferences, in order."""
        # Not test_dataloader(), which after a training of several processes has the share of this process alone.
        items: Any = self.data.eval_data(self.data.splits.test)
        for start in range(0, len(items), self.data.batch_size):
            numbers = range(start, min(start + self.data.batch_size, len(items)))
            batch = items.collate([items[number] for number in numbers])
            assert isinstance(batch, PairBatch | RankingBatch)
            yield batch.to(self.device)


def run_reward_test(test: RewardTest) -> Plain:
    """Return what the test images say about the reward model, for summary.json; nothing without test images."""
    if not len(test.data.splits.test):
        return {}
    test.model.to(test.device).eval()
    found = accuracy_and_calibration(test) | {"other": correlations_on_other_masks(test)}
    attack = attack_on_test(test)
    return found | ({"attack": attack} if attack else {})


@torch.no_grad()
def accuracy_and_calibration(test: RewardTest) -> Plain:
    """Return the accuracy on the test pairs, as a mean over images, and the calibration of σ(R⁺ − R⁻)."""
    shares: list[float] = []
    margins: list[torch.Tensor] = []
    for batch in test.batches():
        ahead = margins_of(rewards_of(test.model, batch)).cpu()
        image = torch.arange(len(ahead)) if isinstance(batch, RankingBatch) else batch.image_index.cpu()
        for number in range(len(batch.ids)):
            shares.append(float(share_ahead(ahead[image == number]).double().mean()))
        margins.append(ahead.flatten())
    whole = torch.cat(margins)
    calibration = Calibration(sync_on_compute=False)
    # Each pair counts as a pixel whose class is "the chosen mask"; its confidence is that in the mask with more reward.
    calibration.update(whole[None, None], torch.ones_like(whole[None], dtype=torch.int64))
    found = calibration.compute()
    return {
        "accuracy": asdict(mean_interval(shares)),
        "pairs": len(whole),
        "ece": float(found["ece"]),
        "brier": float(found["brier"]),
    }


def correlations_on_other_masks(test: RewardTest) -> Plain:
    """Return rank correlations of rewards with true quality, image by image, on masks of `reward_test.other`.

    `without` counts images whose masks all have the same quality or the same reward: they have no correlation.
    `left_out` counts images that the source has no masks for, and images without gold.
    """
    config, source = test.run.config, test.run.source
    other = build(config.reward_test.other)
    if test.network is not None and asks_network(other):
        other = with_network(other, network_to_ask(config, test.network))
    truth: Judge = build(config.reward_test.truth)
    rewards = partial(by_network, model=test.model, device=str(test.device), views=build(config.transforms)["eval"])
    found: list[tuple[float, float]] = []
    left_out: list[str] = []
    for index in test.run.splits.test:
        record = source[int(index)]
        rng = record_rng(config.seed, record.id, "judge")
        try:
            masks = distinct(other(record, record_rng(config.seed, record.id, "reward test"))).masks
            quality = truth(record, masks, rng)
        except ValueError as error:  # no mask to corrupt, or no gold
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


@dataclass(frozen=True, eq=False)
class Attack:
    """What became of some masks under attack.

    Attributes:
        soft_reward: float32 [steps + 1, masks], the reward of the class probabilities that were changed; the first row
            is before the first step.
        reward: that of the mask of the most probable classes.
        iou: the IoU of that mask with the gold mask.
    """

    soft_reward: Tensor
    reward: Tensor
    iou: Tensor


def attack_on_test(test: RewardTest) -> Plain:
    """Attack the first test images, starting at the worst mask of each; write attack.csv and attack.png.

    Returns:
        Reward and IoU before and after, for summary.json; nothing if no image has gold or images is 0.
    """
    run, options = test.run, test.run.config.reward_test.attack
    if not options.images:
        return {}
    attacks: list[Attack] = []
    ids: list[str] = []
    for batch in test.batches():
        if len(ids) >= options.images:
            break
        if batch.gold is None:
            continue
        masks, gold = worst_masks(batch), batch.gold.masked_fill(~batch.valid, IGNORE)
        kept = (gold != IGNORE).flatten(1).any(1).nonzero().flatten()[: options.images - len(ids)]
        if not len(kept):
            continue
        attacks.append(
            attack(
                test.model,
                batch.image[kept],
                masks[kept],
                gold[kept],
                steps=options.steps,
                step_size=options.step_size,
                background=run.config.background,
            )
        )
        ids += [batch.ids[number] for number in kept.tolist()]
    if not attacks:
        log.warning("Expected gold masks of test images for the attack on the reward model but there is none.")
        return {}
    whole = Attack(*(torch.cat([getattr(one, name) for one in attacks], 1) for name in Attack.__dataclass_fields__))
    write_atomically(run.folder / "attack.csv", as_csv(whole, ids).encode())
    draw_attack(whole.reward.tolist(), whole.iou.tolist(), run.folder / "attack.png")
    return ends_of(whole)


def attack(
    model: nn.Module,
    image: Tensor,
    masks: Tensor,
    gold: Tensor,
    *,
    steps: int,
    step_size: float,
    background: bool = False,
) -> Attack:
    """Change masks by gradient ascent on their reward.

    Args:
        model: a reward model with `of_inputs` and `classes`, as those of this package.
        image: float32 [P, C, H, W].
        masks: uint8 [P, H, W], one an image; pixels that a mask ignores stay ignored.
        gold: uint8 [P, H, W], for the IoU.
        steps: how many steps.
        step_size: the mean change of a logit in a step.
        background: whether class 0 counts in the IoU.
    """
    reward_model: Any = model
    classes: int = reward_model.classes
    given = reward_inputs(image, masks, None, classes)
    own = torch.nn.functional.one_hot(masks.masked_fill(~given.known, 0).long(), classes).movedim(-1, 1)
    logits = torch.where(own.bool(), INITIAL_PROBABILITY, (1 - INITIAL_PROBABILITY) / (classes - 1)).log()
    rows: list[tuple[Tensor, Tensor, Tensor]] = []
    for step in range(steps + 1):
        logits.requires_grad_(True)
        soft: Tensor = reward_model.of_inputs(soft_inputs(image, logits.softmax(1), given.known))
        hard = logits.detach().argmax(1).byte().masked_fill(~given.known, IGNORE)
        with torch.no_grad():
            iou = per_image_overlap(hard, gold, classes, background)["iou"]
            rows.append((soft.detach(), model(image, hard), iou))
        if step < steps:
            (gradient,) = torch.autograd.grad(soft.sum(), logits)
            size = gradient.abs().flatten(1).mean(1).clamp(min=torch.finfo(gradient.dtype).tiny)
            logits = logits.detach() + step_size * gradient / size[:, None, None, None]
    return Attack(*(torch.stack(column).float().cpu() for column in zip(*rows, strict=True)))


def worst_masks(batch: PreferenceBatch) -> Tensor:
    """Return the rejected mask of each image's first pair, or the last of its ranking."""
    if not isinstance(batch, PairBatch):
        return batch.ranking[:, -1]
    images = torch.arange(len(batch.image), device=batch.image_index.device)
    return batch.rejected[(batch.image_index == images[:, None]).int().argmax(1)]


def ends_of(attack: Attack) -> dict[str, Any]:
    """Return rewards and IoU before and after the attack, and the step at which the mean IoU was highest."""
    mean = attack.iou.nanmean(1)
    best = int(mean.nan_to_num(-1).argmax())
    return {
        "steps": len(attack.iou) - 1,
        "reward": {"start": asdict(mean_interval(attack.reward[0])), "end": asdict(mean_interval(attack.reward[-1]))},
        "iou": {
            "start": asdict(mean_interval(attack.iou[0])),
            "end": asdict(mean_interval(attack.iou[-1])),
            "difference": asdict(paired_difference(attack.iou[-1], attack.iou[0])),
            "best": float(mean[best]),
            "best_step": best,
        },
    }


def as_csv(attack: Attack, ids: Iterable[str]) -> str:
    """Return one row for each step of each image."""
    names = list(ids)
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["step", "image", "soft_reward", "reward", "iou"])
    for step in range(len(attack.iou)):
        for number, name in enumerate(names):
            values = (getattr(attack, column)[step, number].item() for column in ("soft_reward", "reward", "iou"))
            writer.writerow([step, name, *(f"{value:.6g}" for value in values)])
    return file.getvalue()
