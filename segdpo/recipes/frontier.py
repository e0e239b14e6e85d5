"""The frontier of a run: how much reward a policy gained, and how far (in KL) it moved from the reference for that."""

import logging
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig
from torch import Tensor

from segdpo.checks import IGNORE
from segdpo.data import Numbers, Record, RecordSource, RecordViews, record_rng
from segdpo.masks import Masks, bands
from segdpo.metrics import mean_interval
from segdpo.preferences import CannotJudge, Judge, Network, Scores, agreement, consensus, gumbel, to_image
from segdpo.recipes.config import Plain, build, function_of, leaves, plain
from segdpo.recipes.run import Run
from segdpo.scores import kl, predicted_classes, sample

log = logging.getLogger(__name__)

# Masks drawn for each image; the error of their mean is small compared with the differences between images.
DRAWN = 4


@torch.no_grad()
def frontier_of(run: Run, policy: Network, reference: Network) -> Plain:
    """Return means over the test images with intervals; n = 0 and NaN where the judge cannot score a single mask.

    Returns:
        `kl` and `kl_per_pixel` of the policy to the reference in nats, `reward` of the most probable mask,
        `reward_sampled` of masks drawn pixel by pixel, the same rewards of the `reference`, and the judge's name.
    """
    config = run.config
    judge = judge_of(config)
    rows: dict[str, list[float]] = {}
    for view in TestViews(run.source, policy, run.splits.test, config.seed):
        ours, theirs = (one.logits(view.image, view.record.id) for one in (policy, reference))
        # Few rows at a time: in float64, all rows of a large image take many bytes.
        nats = sum(
            kl(ours[:, :, rows].double(), theirs[:, :, rows].double())[view.valid[:, rows]].sum().item()
            for rows in bands(*ours.shape[2:])
        )
        found = {"kl": nats, "kl_per_pixel": nats / max(1, int(view.valid.sum()))}
        found |= _rewards_of(judge, view, ours, config.seed)
        found |= {f"reference_{name}": value for name, value in _rewards_of(judge, view, theirs, config.seed).items()}
        for name, value in found.items():
            rows.setdefault(name, []).append(value)
    without = int(np.isnan(rows["reward"]).sum())
    if judge and without:
        log.warning("%d of %d test images have no reward: %s", without, len(rows["reward"]), name_of(config.judge))
    means = {name: asdict(mean_interval(values)) for name, values in rows.items()}
    before = {name: means.pop(f"reference_{name}") for name in ("reward", "reward_sampled")}
    return {**means, "reference": before, "judge": name_of(config.judge), **point_of(config)}


@dataclass(frozen=True, eq=False)
class View:
    """A test image as networks receive it.

    Attributes:
        record: image and gold mask of that view, without masks of its own: what a judge receives.
        image: float32 [1, channels, height, width].
        valid: bool [1, height, width]; False outside the image.
    """

    record: Record
    image: Tensor
    valid: Tensor


class TestViews(RecordViews):
    """Test images in order, one view each, with or without gold."""

    __test__ = False  # no class of tests, whatever pytest thinks of its name

    def __init__(self, source: RecordSource, network: Network, numbers: Numbers, seed: int) -> None:
        super().__init__(source, network.preparation.views, numbers, views=1, seed=seed)

    def __iter__(self) -> Iterator[View]:
        for place in range(len(self)):
            record, view = self.read(place)
            seen, gold = self.show(record, view, record.masks[:0])
            shown = to_image(seen.image, self.pipeline.mean, self.pipeline.std)
            bare = Record(record.id, shown, seen.masks, (), gold=gold)
            yield View(bare, torch.from_numpy(seen.image)[None], torch.from_numpy(seen.valid)[None])


def draw_masks(
    view: View, logits: Tensor, count: int, seed: int, *, temperature: float = 1.0, smooth: float = 0.0
) -> Masks:
    """Draw masks of one image; all networks get the same random numbers, so that differences are their own."""
    rng = record_rng(seed, view.record.id, "frontier")
    generator = torch.Generator().manual_seed(int(rng.integers(2**63)))
    return within_image(view, sample(logits, count, temperature=temperature, smoothness=smooth, generator=generator))


def within_image(view: View, masks: Tensor) -> Masks:
    """Return masks with 255 (ignore) outside the image, since not every judge reads the gold mask, which has it."""
    return np.asarray(masks.masked_fill(~view.valid, IGNORE).numpy())


def rewards(judge: Judge | None, record: Record, masks: Masks, seed: int) -> Scores:
    """Return the judge's score of each mask; NaN where it cannot judge."""
    unknown = np.full(len(masks), np.nan)
    if judge is None:
        return unknown
    try:
        return judge(record, masks, record_rng(seed, record.id, "frontier judge"))
    except CannotJudge:
        return unknown


def judge_of(config: DictConfig) -> Judge | None:
    """Return the configuration's judge without its errors; None if it compares candidates and cannot score one mask."""
    judge: Judge = build(config.judge)
    while function_of(judge) is gumbel:
        judge = getattr(judge, "keywords", {})["judge"]
    if function_of(judge) in (agreement, consensus):
        log.info(
            "The frontier has no reward: %s compares candidates, and scores no single mask.", name_of(config.judge)
        )
        return None
    return judge


def name_of(judge: Any) -> str:
    """Return the name and options of a judge's node: equal names are equal judges."""
    # All runs with the same transforms share the views of a reward model; they would fill a page.
    named = [(key, value) for key, value in leaves(plain(judge)) if key.split(".")[0] not in ("views", "device")]
    options = [f"{key}={value}" for key, value in named if not key.rpartition(".")[2].startswith("_")]
    return f"{judge._target_.rpartition('.')[2]}({', '.join(options)})"


def point_of(config: DictConfig) -> Plain:
    """Return method, option and value of a point in a table of frontiers; nothing for other runs."""
    return {"point": plain(config.frontier)} if "frontier" in config else {}


def _rewards_of(judge: Judge | None, view: View, logits: Tensor, seed: int) -> dict[str, float]:
    """Return the reward of the most probable mask, and the mean reward of masks drawn pixel by pixel."""
    drawn = draw_masks(view, logits, DRAWN, seed)
    masks = np.concatenate([within_image(view, predicted_classes(logits)), drawn])
    scores = rewards(judge, view.record, masks, seed)
    return {"reward": float(scores[0]), "reward_sampled": float(scores[1:].mean())}
