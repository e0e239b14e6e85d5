"""The table says what the summary says."""

import io
import math

from rich.console import Console

from segdpo.reports.tables import comparison_table


def interval(mean, low, high, **more):
    return {"mean": mean, "low": low, "high": high, **more}


def lines(summary, width=80):
    console = Console(width=width, record=True, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    console.print(comparison_table(summary))
    plain = console.export_text(clear=False)
    return plain.splitlines(), console.export_text(styles=True)


SUMMARY = {
    "loss": "hinge_anchor",
    "seed": 3,
    "reference": {"iou": interval(0.7374, 0.71, 0.76), "dice": interval(0.83, 0.81, 0.86)},
    "policy": {"iou": interval(0.7774, 0.75, 0.8), "dice": interval(0.82, 0.8, 0.83)},
    "difference": {
        "iou": interval(0.04, 0.03, 0.05, n=64, worse=10, better=53),
        "dice": interval(-0.01, -0.02, -0.005, n=64, worse=40, better=24),
        "win_rate": {"rate": 0.836, "low": 0.73, "high": 0.91, "n": 64},
    },
    "pairs": {"train": 300, "test": 64, "accuracy": 0.91, "chosen_gain": -0.04, "margin": 0.6},
    "seconds": {"total": 101.4},
}


def test_every_number_in_80_columns():
    found, styled = lines(SUMMARY)
    words = [" ".join(line.split()) for line in found]
    assert words[0] == "loss=hinge_anchor, seed=3"
    assert "IoU 0.737 (.710–.760) 0.777 (.750–.800) +0.040 (+.030, +.050)" in words
    assert "Dice 0.830 (.810–.860) 0.820 (.800–.830) -0.010 (-.020, -.005)" in words
    assert "images won 0.84 (.73–.91)" in words
    assert "pair accuracy 0.910" in words
    assert "chosen gain -0.040 displaced" in words
    assert words[-1] == "95 % intervals over 64 test images; better on 53, worse on 10; 101 s in all"
    assert "\x1b[32m+0.040" in styled
    assert "\x1b[31m-0.010" in styled


def test_what_is_not_known_is_left_out():
    one = {"mean": 0.5, "low": math.nan, "high": math.nan}
    missing = {"mean": math.nan, "low": None, "high": None}
    summary = {
        "reference": {"iou": one, "dice": missing},
        "policy": {"iou": one, "dice": missing},
        "difference": {"iou": {**one, "mean": 0.0, "n": 1, "worse": 0, "better": 0}, "dice": missing},
        "pairs": {"chosen_gain": 0.2},
    }
    words = [" ".join(line.split()) for line in lines(summary)[0]]
    assert "IoU 0.500 0.500 +0.000" in words
    assert "Dice – – –" in words
    assert "chosen gain +0.200" in words
    assert not any("accuracy" in line or "won" in line for line in words)
