"""The table that an evaluation ends with."""

import math
from collections.abc import Mapping
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

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
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, caption=_caption(summary), caption_justify="left")
    table.add_column("", no_wrap=True)
    headings = ["reference", "policy", "difference", "better\n/worse", "p", "n"] if both else ["mean", "95 %", "n"]
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    for metric in summary["metrics"]:
        after = summary["policy"][metric]
        cells = _against(summary, metric) if both else [_number(after["mean"]), _interval(after), str(after["n"])]
        table.add_row(NAMES.get(metric, metric), *cells)
    return table


def _against(summary: Mapping[str, Any], metric: str) -> list[str | Text]:
    difference = summary["difference"][metric]
    moved = f"{difference['better']}/{difference['worse']}" if "better" in difference else "–"
    change = f"{_number(difference['mean'], sign='+')} {_interval(difference, sign='+')}".strip()
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


def _interval(value: Mapping[str, float], sign: str = "") -> str:
    if math.isnan(value["low"]):
        return ""
    return f"[{_number(value['low'], sign)}, {_number(value['high'], sign)}]"


def _p(value: float) -> str:
    return "–" if math.isnan(value) else "<.001" if value < 0.001 else f"{value:.3f}".replace("0.", ".", 1)


def _caption(summary: Mapping[str, Any]) -> str:
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
