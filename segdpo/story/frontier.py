"""What a policy has gained and how far it went for that: reward by the judge, and KL to the reference, on test images.

Both networks are distributions over masks, each pixel on its own, of the size at which they see an image; the judge
gets image, gold and masks of that size. `reward` is that of the mask that the network would be used for, each pixel's
most probable class; `reward_sampled` the mean over masks drawn from the distribution, whose KL is given.
"""

import logging
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig
from torch import Tensor

from segdpo.data.record_source import RecordSource
from segdpo.data.splits import Numbers
from segdpo.data.views import RecordViews
from segdpo.metrics.statistics import mean_interval
from segdpo.pairs.judges import Judge, Scores, agreement, consensus
from segdpo.pairs.judges_noisy import gumbel
from segdpo.pairs.overlap import CannotJudge
from segdpo.pairs.prediction import to_image
from segdpo.pairs.record import Masks, Record
from segdpo.pairs.seeding import record_rng
from segdpo.policies.pixel_policy import kl, predicted_classes
from segdpo.policies.sampling import sample
from segdpo.regions import IGNORE
from segdpo.story.configs import Plain, build, leaves, plain
from segdpo.story.evaluation_measure import Network, logits_of
from segdpo.story.setting import Setting

log = logging.getLogger(__name__)

# Masks drawn of each image; their mean's error is small beside what images differ by.
DRAWN = 4


@dataclass(frozen=True, eq=False)
class Seen:
    """A test image as networks see it; `record` has image and gold of that view and no masks, as a judge wants it."""

    record: Record
    image: Tensor
    valid: Tensor


class SeenImages(RecordViews):
    """Test images in order, one view each, whether they have gold or not."""

    def __init__(self, source: RecordSource, network: Network, numbers: Numbers, seed: int) -> None:
        super().__init__(source, network.pipeline, numbers, views=1, seed=seed)
        self._mean, self._std = network.mean, network.std

    def __iter__(self) -> Iterator[Seen]:
        for place in range(len(self)):
            record, view = self._open(place)
            seen, gold = self._look(record, view, record.masks[:0])
            shown = to_image(seen.image, self._mean, self._std)
            bare = Record(record.id, shown, seen.masks, (), gold=gold)
            yield Seen(bare, torch.from_numpy(seen.image)[None], torch.from_numpy(seen.valid)[None])


@torch.no_grad()
def frontier_of(setting: Setting, policy: Network, reference: Network, device: torch.device) -> Plain:
    """Return rewards and KL over the test images, each with its interval; NaN and n=0 where the judge cannot say."""
    config = setting.config
    judge = judge_of(config)
    rows: dict[str, list[float]] = {}
    for seen in SeenImages(setting.source, policy, setting.splits.test, config.seed):
        ours, theirs = (logits_of(one.module, seen.image, device, [seen.record.id]) for one in (policy, reference))
        nats = kl(ours.double(), theirs.double())[seen.valid].sum().item()
        found = {"kl": nats, "kl_per_pixel": nats / max(1, int(seen.valid.sum()))}
        found |= rewards_of(judge, seen, ours, config.seed)
        found |= {f"reference_{name}": value for name, value in rewards_of(judge, seen, theirs, config.seed).items()}
        for name, value in found.items():
            rows.setdefault(name, []).append(value)
    unjudged = int(np.isnan(rows["reward"]).sum())
    if unjudged:
        log.warning("%d of %d test images have no reward: %s", unjudged, len(rows["reward"]), name_of(config.judge))
    means = {name: asdict(mean_interval(values)) for name, values in rows.items()}
    before = {name: means.pop(f"reference_{name}") for name in ("reward", "reward_sampled")}
    return {**means, "reference": before, "judge": name_of(config.judge), **point_of(config)}


def rewards_of(judge: Judge | None, seen: Seen, logits: Tensor, seed: int) -> dict[str, float]:
    """Return the reward of the most probable mask, and the mean of masks drawn pixel by pixel."""
    drawn = draw(seen, logits, DRAWN, seed)
    masks = np.concatenate([hidden(seen, predicted_classes(logits)), drawn])
    scores = rewards(judge, seen.record, masks, seed)
    return {"reward": float(scores[0]), "reward_sampled": float(scores[1:].mean())}


def draw(seen: Seen, logits: Tensor, count: int, seed: int, *, temperature: float = 1.0, smooth: float = 0.0) -> Masks:
    """Draw masks of one image; every network is given the same random numbers, so that differences are its own."""
    rng = record_rng(seed, seen.record.id, "frontier")
    generator = torch.Generator().manual_seed(int(rng.integers(2**63)))
    return hidden(seen, sample(logits, count, temperature=temperature, smoothness=smooth, generator=generator))


def hidden(seen: Seen, masks: Tensor) -> Masks:
    """Mark as ignored what lies outside the image, since not every judge looks at gold."""
    return np.asarray(masks.masked_fill(~seen.valid, IGNORE).numpy())


def rewards(judge: Judge | None, record: Record, masks: Masks, seed: int) -> Scores:
    """Return one reward a mask; NaN where there is nothing to judge by."""
    unknown = np.full(len(masks), np.nan)
    if judge is None:
        return unknown
    try:
        return judge(record, masks, record_rng(seed, record.id, "frontier judge"))
    except CannotJudge:
        return unknown


def judge_of(config: DictConfig) -> Judge | None:
    """Return the judge that defines preference, without the noise of one that errs; None: it cannot judge one mask."""
    judge: Judge = build(config.judge)
    while getattr(judge, "func", judge) is gumbel:
        judge = getattr(judge, "keywords", {})["judge"]
    if getattr(judge, "func", judge) in (agreement, consensus):
        log.warning("%s holds candidates against each other: a policy's own mask has no reward.", name_of(config.judge))
        return None
    return judge


def name_of(judge: Any) -> str:
    """Return a judge's target and its options: equal names, equal judges."""
    # How it looks at an image is the same for all runs that share transforms, and would fill a page.
    told = [(key, value) for key, value in leaves(plain(judge)) if key.split(".")[0] not in ("views", "device")]
    options = [f"{key}={value}" for key, value in told if not key.rpartition(".")[2].startswith("_")]
    return f"{judge._target_.rpartition('.')[2]}({', '.join(options)})"


def point_of(config: DictConfig) -> Plain:
    """Return what a row of a frontier calls itself: method, knob and value; nothing for other runs."""
    return {"point": plain(config.frontier)} if "frontier" in config else {}
