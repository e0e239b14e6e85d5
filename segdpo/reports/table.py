"""The table that a run ends with: reference, policy, difference with its interval, and how the pairs went."""

import math
from collections.abc import Mapping
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

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
