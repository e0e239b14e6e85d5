"""The tables of a run's report: metrics, classes, and the images that got worse."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from segdpo.reports.html_files import RunFiles
from segdpo.reports.html_text import DASH, METRICS, bounds, plain, signed, tone_of
from segdpo.reports.html_tolerant import at, number

WORST = 12


@dataclass(frozen=True)
class MetricRow:
    """A line of the table of results, as text; `tone` colours the difference."""

    name: str
    reference: tuple[str, str]
    policy: tuple[str, str]
    difference: tuple[str, str]
    tone: str
    better: str
    worse: str
    p: str
    n: str


def metric_rows(numbers: Mapping[str, Any], evaluation: Mapping[str, Any]) -> Iterator[MetricRow]:
    """Give a line for each metric that was measured, then the share of images won."""
    measured = [name for part in ("policy", "reference") for name in at(numbers, part) or {}]
    names = [name for name in METRICS if name in measured]
    for name in [*names, *dict.fromkeys(name for name in measured if name not in METRICS)]:
        difference = at(numbers, "difference", name)
        after, before = at(numbers, "policy", name), at(numbers, "reference", name)
        n = at(difference, "n")
        yield MetricRow(
            METRICS.get(name, name),
            (plain(at(before, "mean")), bounds(before)),
            (plain(at(after, "mean")), bounds(after)),
            (signed(at(difference, "mean")), bounds(difference, sign=True)),
            tone_of(difference, name),
            plain(at(difference, "better"), 0),
            plain(at(difference, "worse"), 0),
            _p(at(evaluation, "wilcoxon", name, "p")),
            plain(at(after, "n") if n is None else n, 0),
        )
    wins = at(numbers, "difference", "win_rate")
    if not math.isnan(number(at(wins, "rate"))):
        won = (plain(at(wins, "rate")), bounds(wins))
        yield MetricRow("Images won", ("", ""), won, ("", ""), "open", "", "", "", plain(at(wins, "n"), 0))


def _p(value: object) -> str:
    found = number(value)
    return DASH if math.isnan(found) else "< 0.001" if found < 0.001 else plain(found)


def class_rows(rows: Sequence[Mapping[str, str]]) -> Iterator[tuple[str, ...]]:
    """Give class, metric, and each network's mean with its interval and n."""
    found: dict[tuple[str, str], dict[str, Mapping[str, str]]] = {}
    for row in rows:
        found.setdefault((row.get("class", ""), row.get("metric", "")), {})[row.get("network", "")] = row
    for (name, metric), networks in found.items():
        cells = []
        for network in ("reference", "policy", "difference"):
            found_one = networks.get(network)
            show = signed if network == "difference" else plain
            cells.append(f"{show(at(found_one, 'mean'))} {bounds(found_one, sign=network == 'difference')}".strip())
        n = next((row["n"] for row in reversed(networks.values()) if "n" in row), DASH)
        yield name, METRICS.get(metric, metric), *cells, n


def tax_of(files: RunFiles, numbers: Mapping[str, Any]) -> str:
    """Return how many images pay for the gain of the others, and how much."""
    losses = [change for image in files.evaluation.images if (change := image.change()) < 0]
    counted = sum(math.isfinite(image.change()) for image in files.evaluation.images)
    if counted:
        share = f"{len(losses)} of {counted} images ({100 * len(losses) / counted:.0f} %) got worse in IoU"
        return f"{share}, by {plain(-sum(losses) / len(losses))} on average." if losses else f"{share}."
    difference = at(numbers, "difference", "iou")
    if math.isnan(number(at(difference, "worse"))):
        return ""
    return f"{plain(at(difference, 'worse'), 0)} of {plain(at(difference, 'n'), 0)} images got worse in IoU."


def worst_of(files: RunFiles) -> list[tuple[str, str, str, str]]:
    """Return the images that lost most: id, reference, policy, change."""
    if files.evaluation.images:
        changes = [(image, image.change()) for image in files.evaluation.images]
        lost = sorted([pair for pair in changes if pair[1] < 0], key=lambda pair: pair[1])
        return [
            (image.id, plain(image.iou("reference")), plain(image.iou("policy")), signed(change))
            for image, change in lost[:WORST]
        ]
    # The list is of the first metric that was asked for.
    listed = at(files.evaluation.summary, "worst") if at(files.evaluation.summary, "main") in ("iou", None) else None
    pairs = [pair for pair in listed if isinstance(pair, list) and len(pair) == 2] if isinstance(listed, list) else []
    return [(str(name), DASH, DASH, signed(change)) for name, change in pairs[:WORST]]
