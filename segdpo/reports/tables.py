"""Tables of a run: the comparison and the evaluation."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from segdpo.preferences import SourceReport

ROWS = {"iou": "IoU", "dice": "Dice"}
PAIRS = {
    "accuracy": "pair accuracy",
    "margin": "margin h",
    "chosen_gain": "chosen gain",
    "rejected_gain": "rejected gain",
    "kl": "KL a pixel",
}
UNSIGNED = ("accuracy", "kl")


def comparison_table(summary: Mapping[str, Any]) -> Table:
    """Return the table of one run's summary (the content of summary.json).

    A difference whose interval is above 0 is green, below 0 red; a chosen gain below 0 is red: displacement.
    """
    title = ", ".join(f"{name}={summary[name]}" for name in ("loss", "seed") if name in summary)
    table = Table(
        title=title or None,
        title_justify="left",
        caption=_caption(summary),
        caption_justify="left",
        # Without upright lines the table fits into 80 columns.
        box=box.SIMPLE_HEAD,
        pad_edge=False,
    )
    table.add_column("")
    for heading in ("reference", "policy", "difference"):
        table.add_column(heading, justify="right")
    for key, name in ROWS.items():
        if key in summary.get("difference", {}):
            difference = summary["difference"][key]
            before, after = summary["reference"][key], summary["policy"][key]
            table.add_row(name, _interval(before), _interval(after), _signed(difference))
        elif key in summary.get("policy", {}):
            table.add_row(name, "", _interval(summary["policy"][key]), "")
    if "win_rate" in summary.get("difference", {}):
        wins = summary["difference"]["win_rate"]
        table.add_row("images won", "", _interval({**wins, "mean": wins["rate"]}, digits=2), "")
    for key, name in PAIRS.items():
        if _known(value := summary.get("pairs", {}).get(key)):
            displaced = key == "chosen_gain" and value < 0
            shown = f"{value:.3f}" if key in UNSIGNED else f"{value:+.3f}"
            table.add_row(name, "", Text(shown, style="red" if displaced else ""), "displaced" if displaced else "")
    return table


def _known(value: object) -> bool:
    return isinstance(value, int | float) and not math.isnan(value)


def _interval(value: Mapping[str, float], digits: int = 3) -> str:
    """Return "0.737 (.712–.761)", or the mean alone where there is no interval."""
    if not _known(value["mean"]):
        return "–"
    mean = f"{value['mean']:.{digits}f}"
    if not (_known(value.get("low")) and _known(value.get("high"))):
        return mean
    return f"{mean} ({_short(value['low'], digits)}–{_short(value['high'], digits)})"


def _signed(value: Mapping[str, float]) -> Text:
    if not _known(value["mean"]):
        return Text("–")
    if not (_known(value["low"]) and _known(value["high"])):
        return Text(f"{value['mean']:+.3f}")
    style = "green" if value["low"] > 0 else "red" if value["high"] < 0 else ""
    return Text(
        f"{value['mean']:+.3f} ({_short(value['low'], sign='+')}, {_short(value['high'], sign='+')})", style=style
    )


def _short(value: float, digits: int = 3, sign: str = "") -> str:
    return f"{value:{sign}.{digits}f}".replace("0.", ".", 1)


def _caption(summary: Mapping[str, Any]) -> str | None:
    iou = summary.get("difference", summary.get("policy", {})).get("iou")
    if iou is None:
        return None
    said = f"95 % intervals over {iou['n']} test images"
    if "better" in iou:
        said += f"; better on {iou['better']}, worse on {iou['worse']}"
    total = summary.get("seconds", {}).get("total")
    return f"{said}; {total:.0f} s in all" if _known(total) else said


NAMES = {
    "iou": "IoU",
    "dice": "Dice",
    "boundary_iou": "boundary IoU",
    "hd95": "HD95 ↓",
    "surface_dice": "surface Dice",
    "precision": "precision",
    "recall": "recall",
    "components": "extra parts",
}


def evaluation_table(summary: Mapping[str, Any]) -> Table:
    """Return the table of an evaluation's summary.json: a line a metric.

    With a reference: both means, the difference with its 95 % interval, on how many images it got better and worse and
    Wilcoxon's p (where a metric says which is better), n. Of one network alone: mean, interval, n. Green and red: the
    interval leaves out 0.
    """
    both = "difference" in summary
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, caption=_evaluation_caption(summary), caption_justify="left")
    table.add_column("", no_wrap=True)
    headings = ["reference", "policy", "difference", "better\n/worse", "p", "n"] if both else ["mean", "95 %", "n"]
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    for metric in summary["metrics"]:
        after = summary["policy"][metric]
        cells = _against(summary, metric) if both else [_number(after["mean"]), _in_brackets(after), str(after["n"])]
        table.add_row(NAMES.get(metric, metric), *cells)
    return table


def _against(summary: Mapping[str, Any], metric: str) -> list[str | Text]:
    difference = summary["difference"][metric]
    moved = f"{difference['better']}/{difference['worse']}" if "better" in difference else "–"
    change = f"{_number(difference['mean'], sign='+')} {_in_brackets(difference, sign='+')}".strip()
    higher = summary["higher_is_better"][metric]
    up, down = difference["low"] > 0, difference["high"] < 0
    style = "" if higher is None or not (up or down) else "green" if up == higher else "red"
    return [
        _number(summary["reference"][metric]["mean"]),
        _number(summary["policy"][metric]["mean"]),
        Text(change, style=style),
        moved,
        _p(summary["wilcoxon"].get(metric, {}).get("p", math.nan)),
        str(difference["n"]),
    ]


def _number(value: float, sign: str = "") -> str:
    return (
        "–"
        if math.isnan(value)
        else f"{value:{sign}.3f}".replace("0.", ".", 1)
        if abs(value) < 1
        else f"{value:{sign}.2f}"
    )


def _in_brackets(value: Mapping[str, float], sign: str = "") -> str:
    if math.isnan(value["low"]):
        return ""
    return f"[{_number(value['low'], sign)}, {_number(value['high'], sign)}]"


def _p(value: float) -> str:
    return "–" if math.isnan(value) else "<.001" if value < 0.001 else f"{value:.3f}".replace("0.", ".", 1)


def _evaluation_caption(summary: Mapping[str, Any]) -> str:
    said = [f"{summary['images']} images"]
    if "difference" in summary:
        said.append("95 % intervals in brackets; p: Wilcoxon's signed ranks")
    if summary["without_gold"]:
        said.append(f"{len(summary['without_gold'])} more have no gold and were left out")
    for network, counts in summary["not_counted"].items():
        for count in sorted(set(counts.values())):
            metrics = [NAMES.get(metric, metric) for metric, number in counts.items() if number == count]
            where = "any metric" if len(metrics) == len(summary["metrics"]) else ", ".join(metrics)
            said.append(f"{count} do not count for the {network} in {where}: nothing there, nothing found")
    return "; ".join(said)


def sources_table(sources: Sequence[SourceReport]) -> Table:
    """Return the table of candidate sources: how much their masks differ, and how far apart their qualities are."""
    table = Table(
        title="Candidates by source: share of identical masks, mean IoU with each other, IoU with gold",
        caption="means over the images",
    )
    table.add_column("source", no_wrap=True)
    for column in ("images", "masks", "same", "mutual", "worst", "mean", "best", "spread"):
        table.add_column(column, justify="right", no_wrap=True)
    for source in sources:
        numbers = source.pairwise_iou, source.worst_quality, source.mean_quality, source.best_quality, source.spread
        cells = ["–" if math.isnan(number) else f"{number:.3f}" for number in numbers]
        table.add_row(source.source, str(source.images), str(source.masks), f"{source.identical:.1%}", *cells)
    return table
