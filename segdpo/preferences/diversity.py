"""Reports on sources of candidates: how much their masks differ, and how far apart their qualities are."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from segdpo.data import Candidates, Record
from segdpo.masks import mean_pairwise_iou
from segdpo.preferences.candidates import first_of_each
from segdpo.preferences.judges import iou

TOGETHER = "(together)"


@dataclass(frozen=True)
class Diversity:
    """The candidates of one source for one image; NaN where a value is not defined (one mask, no gold).

    `identical` counts the masks that equal an earlier one; quality is the IoU with gold.
    """

    masks: int
    identical: int
    pairwise_iou: float
    worst_quality: float
    mean_quality: float
    best_quality: float


@dataclass(frozen=True)
class SourceReport:
    """The means over the images that a source gave masks for; `identical` is a share of the masks."""

    source: str
    images: int
    masks: int
    identical: float
    pairwise_iou: float
    worst_quality: float
    mean_quality: float
    best_quality: float

    @property
    def spread(self) -> float:
        """Best minus worst quality: what a judge has to choose between."""
        return self.best_quality - self.worst_quality


def source_of(name: str) -> str:
    """Return the part of a mask's name before the first "-"."""
    return name.partition("-")[0]


def diversity_by_source(record: Record, candidates: Candidates, *, background: bool = False) -> dict[str, Diversity]:
    """Describe the candidates of each source, and all of them together if there are several sources.

    `background`: whether class 0 counts in IoU.
    """
    numbers = defaultdict(list)
    for number, name in enumerate(candidates.names):
        numbers[source_of(name)].append(number)
    if len(numbers) > 1:
        numbers[TOGETHER] = list(range(len(candidates.names)))
    return {source: _diversity(record, candidates.masks[chosen], background) for source, chosen in numbers.items()}


def report_sources(images: Iterable[dict[str, Diversity]]) -> list[SourceReport]:
    """Average over the images: one report a source, sorted by name, all sources together last."""
    collected = defaultdict(list)
    for by_source in images:
        for source, diversity in by_source.items():
            collected[source].append(diversity)
    return [
        _report(source, collected[source]) for source in sorted(collected, key=lambda name: (name == TOGETHER, name))
    ]


def _diversity(record: Record, masks: np.ndarray, background: bool) -> Diversity:
    quality = np.full(1, np.nan)
    if record.gold is not None:
        quality = iou(record, masks, np.random.default_rng(0), background=background)
    return Diversity(
        masks=len(masks),
        identical=len(masks) - len(first_of_each(masks)),
        pairwise_iou=mean_pairwise_iou(masks, background=background),
        worst_quality=float(quality.min()),
        mean_quality=float(quality.mean()),
        best_quality=float(quality.max()),
    )


def _report(source: str, seen: list[Diversity]) -> SourceReport:
    masks = sum(one.masks for one in seen)
    return SourceReport(
        source=source,
        images=len(seen),
        masks=masks,
        identical=sum(one.identical for one in seen) / masks,
        pairwise_iou=_mean([one.pairwise_iou for one in seen]),
        worst_quality=_mean([one.worst_quality for one in seen]),
        mean_quality=_mean([one.mean_quality for one in seen]),
        best_quality=_mean([one.best_quality for one in seen]),
    )


def _mean(values: list[float]) -> float:
    known = [value for value in values if not np.isnan(value)]
    return float(np.mean(known)) if known else float("nan")
