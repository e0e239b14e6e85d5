"""Tables for the terminal: policy against reference after a run and after an evaluation, and sources of candidates."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from segdpo.metrics import Interval
from segdpo.preferences import SourceReport
from segdpo.reports.held_out import GAINS, gold_sentence, kept_sentence, wins_of
from segdpo.reports.run_files import at, interval_at, number
from segdpo.reports.text import DASH, METRIC_NAMES, decimal, p_value, verdict_of

PAIRS = {
    "accuracy": "pair accuracy",
    "margin": "margin h",
    "chosen_gain": "chosen gain",
    "rejected_gain": "rejected gain",
    "kl": "KL a pixel",
}
UNSIGNED = ("accuracy", "kl")
STYLES = {"better": "green", "worse": "red"}


def comparison_table(summary: Mapping[str, Any]) -> Table:
    """Return the table of one run for rich.

    A difference whose interval is above 0 is green, below 0 red. A chosen gain below 0, displacement, is red. Where no
    test image has gold, it shows what the held-out judgements say.

    Args:
        summary: the content of the run's summary.json.
    """
    title = ", ".join(f"{name}={summary[name]}" for name in ("loss", "seed") if name in summary)
    table = _table(_comparison_caption(summary), ["reference", "policy", "difference"])
    table.title, table.title_justify = title or None, "left"
    for metric in ("iou", "dice"):
        if metric in summary.get("policy", {}):
            compared = metric in summary.get("difference", {})
            before = _in_parentheses(interval_at(summary, "reference", metric)) if compared else ""
            change = _difference(interval_at(summary, "difference", metric)) if compared else ""
            table.add_row(METRIC_NAMES[metric], before, _in_parentheses(interval_at(summary, "policy", metric)), change)
    if wins := at(summary, "difference", "win_rate"):
        share = Interval(wins["rate"], wins["low"], wins["high"], wins["n"])
        table.add_row("images won", "", _in_parentheses(share, digits=2), "")
    if at(summary, "gold", "with_gold") == 0 and at(summary, "held_out", "judgements"):
        for gain, name in GAINS.items():
            table.add_row(name, "", "", _difference(interval_at(summary, "held_out", gain)))
        table.add_row("judged images won", "", _in_parentheses(wins_of(summary), digits=2), "")
    for key, name in PAIRS.items():
        value = number(at(summary, "pairs", key))
        if not math.isnan(value):
            displaced = key == "chosen_gain" and value < 0
            shown = Text(decimal(value, sign=key not in UNSIGNED), style="red" if displaced else "")
            table.add_row(name, "", shown, "displaced" if displaced else "")
    return table


def evaluation_table(summary: Mapping[str, Any]) -> Table:
    """Return the table of an evaluation for rich, a line a metric.

    With a reference: both means, the difference with its 95 % interval, on how many images it got better and worse,
    Wilcoxon's p (where a metric says which is better) and n. For one network: mean, interval and n. Green and red: 0
    lies outside the interval.

    Args:
        summary: the content of the evaluation's summary.json.
    """
    both = "difference" in summary
    headings = ["reference", "policy", "difference", "better\n/worse", "p", "n"] if both else ["mean", "95 %", "n"]
    table = _table(_evaluation_caption(summary), headings)
    for metric in summary["metrics"]:
        policy = interval_at(summary, "policy", metric)
        cells = _compared(summary, metric) if both else [_compact(policy.mean), _in_brackets(policy), str(policy.n)]
        table.add_row(METRIC_NAMES.get(metric, metric), *cells)
    return table


def sources_table(sources: Sequence[SourceReport]) -> Table:
    """Return a table for rich: how much the candidates of each source differ, and how far apart their qualities are."""
    table = Table(
        title="Candidates by source: share of identical masks, mean IoU with each other, IoU with gold",
        caption="means over the images",
    )
    table.add_column("source", no_wrap=True)
    for column in ("images", "masks", "same", "mutual", "worst", "mean", "best", "spread"):
        table.add_column(column, justify="right", no_wrap=True)
    for source in sources:
        numbers = source.pairwise_iou, source.worst_quality, source.mean_quality, source.best_quality, source.spread
        cells = [f"{source.identical:.1%}", *map(decimal, numbers)]
        table.add_row(source.source, str(source.images), str(source.masks), *cells)
    return table


def _table(caption: str | None, headings: list[str]) -> Table:
    # Without vertical lines the table fits into 80 columns.
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, caption=caption, caption_justify="left")
    table.add_column("", no_wrap=True)
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    return table


def _difference(interval: Interval) -> str | Text:
    text = decimal(interval.mean, sign=True)
    if math.isnan(interval.half):
        return text
    low, high = _short(interval.low, sign=True), _short(interval.high, sign=True)
    return Text(f"{text} ({low}, {high})", style=STYLES.get(verdict_of(interval), ""))


def _in_parentheses(interval: Interval, digits: int = 3) -> str:
    """Return "0.737 (.712–.761)", or the mean alone where there is no interval."""
    mean = decimal(interval.mean, digits)
    if math.isnan(interval.half):
        return mean
    return f"{mean} ({_short(interval.low, digits)}–{_short(interval.high, digits)})"


def _comparison_caption(summary: Mapping[str, Any]) -> str | None:
    iou = summary.get("difference", summary.get("policy", {})).get("iou")
    parts = [gold_sentence(summary)]
    if iou is not None:
        parts.append(f"95 % intervals over {iou['n']} test images")
        if "better" in iou:
            parts.append(f"better on {iou['better']}, worse on {iou['worse']}")
    total = number(at(summary, "seconds", "total"))
    if not math.isnan(total) and any(parts):
        parts.append(f"{total:.0f} s in all")
    sentences = ("; ".join(filter(None, parts)), kept_sentence(summary))
    return "\n".join(filter(None, sentences)) or None


def _compared(summary: Mapping[str, Any], metric: str) -> list[str | Text]:
    difference, counts = interval_at(summary, "difference", metric), summary["difference"][metric]
    change = f"{_compact(difference.mean, sign=True)} {_in_brackets(difference, sign=True)}".strip()
    p = p_value(number(at(summary, "wilcoxon", metric, "p")))
    return [
        _compact(interval_at(summary, "reference", metric).mean),
        _compact(interval_at(summary, "policy", metric).mean),
        Text(change, style=STYLES.get(verdict_of(difference, metric), "")),
        f"{counts['better']}/{counts['worse']}" if "better" in counts else DASH,
        _without_zero(p.replace(" ", "")),
        str(difference.n),
    ]


def _evaluation_caption(summary: Mapping[str, Any]) -> str:
    parts = [f"{summary['images']} images"]
    if "difference" in summary:
        parts.append("95 % intervals in brackets; p: Wilcoxon's signed ranks")
    if summary["without_gold"]:
        parts.append(f"{len(summary['without_gold'])} more have no gold and were left out")
    for network, counts in summary["not_counted"].items():
        for count in sorted(set(counts.values())):
            metrics = [METRIC_NAMES.get(metric, metric) for metric, number in counts.items() if number == count]
            where = "any metric" if len(metrics) == len(summary["metrics"]) else ", ".join(metrics)
            parts.append(f"{count} do not count for the {network} in {where}: nothing there, nothing found")
    return "; ".join(parts)


def _compact(value: float, *, sign: bool = False) -> str:
    """Return three digits of a share, two of a distance."""
    return _short(value, 3 if abs(value) < 1 else 2, sign=sign)


def _in_brackets(interval: Interval, *, sign: bool = False) -> str:
    if math.isnan(interval.half):
        return ""
    return f"[{_compact(interval.low, sign=sign)}, {_compact(interval.high, sign=sign)}]"


def _short(value: float, digits: int = 3, *, sign: bool = False) -> str:
    return _without_zero(decimal(value, digits, sign=sign))


def _without_zero(text: str) -> str:
    """Leave out the 0 before a number's point."""
    return re.sub(r"^([<+-]?)0\.", r"\1.", text)
