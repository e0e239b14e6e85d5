"""Compare policy and reference on the test images; the point of the run on the frontier."""

import logging
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from segdpo.checks import IGNORE
from segdpo.data import Numbers, Record, RecordSource, RecordViews, record_rng
from segdpo.masks import Masks
from segdpo.metrics import mean_interval, paired_difference, win_rate
from segdpo.preferences import CannotJudge, Judge, Scores, agreement, consensus, gumbel, to_image
from segdpo.recipes.config import Plain, build, leaves, plain
from segdpo.recipes.evaluation import Evaluated, write_evaluation
from segdpo.recipes.fitting import description_of
from segdpo.recipes.measure import CHEAP, Examination, Measured, Network, Values, credited, logits_of, measure_network
from segdpo.recipes.run import Setting, peak_mib
from segdpo.scores import kl, predicted_classes, sample

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
            record, view = self.read(place)
            seen, gold = self.show(record, view, record.masks[:0])
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
