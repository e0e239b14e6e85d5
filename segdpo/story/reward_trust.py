"""How far a reward model can be trusted: on held-out pairs, on masks of other sources, under attack."""

import logging
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from scipy import stats
from torch import nn

from segdpo.data.batch import PairBatch, RankingBatch
from segdpo.data.datamodule import DataModule
from segdpo.metrics.calibration import Calibration
from segdpo.metrics.statistics import mean_interval
from segdpo.pairs.candidates import distinct
from segdpo.pairs.judges import Judge
from segdpo.pairs.judges_network import by_network
from segdpo.pairs.seeding import record_rng
from segdpo.story.configs import Plain, build, plain
from segdpo.story.preferences import asking_the_reference
from segdpo.story.reward_attack import attack_on_test
from segdpo.story.setting import Setting
from segdpo.training.reward_task import margins_of, rewards_of, share_ahead
from segdpo.training.scoring import PreferenceBatch

log = logging.getLogger(__name__)


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
