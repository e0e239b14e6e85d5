"""Tables for the terminal hold the numbers of the summary."""

import io
import math

from rich.console import Console

from segdpo.reports import comparison_table, evaluation_table


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


NAN = math.nan


def measured(mean, low=NAN, high=NAN, **more):
    return {"mean": mean, "low": low, "high": high, "n": 14, **more}


def evaluation(**changed):
    return {
        "metrics": ["iou", "hd95"],
        "higher_is_better": {"iou": True, "hd95": False},
        "images": 14,
        "without_gold": [],
        "not_counted": {"policy": {}, "reference": {}},
        "policy": {"iou": measured(0.71), "hd95": measured(12.5)},
        "reference": {"iou": measured(0.6), "hd95": measured(10.0)},
        "difference": {
            "iou": measured(0.11, 0.02, 0.2, better=9, worse=5),
            "hd95": measured(2.5, 1.25, 3.0, better=4, worse=10),
        },
        "wilcoxon": {"iou": {"p": 0.0002}, "hd95": {"p": 0.0312}},
    } | changed


def drawn(summary, width=80, colours="standard"):
    console = Console(file=io.StringIO(), width=width, color_system=colours)
    console.print(evaluation_table(summary))
    return console.file.getvalue()


def plain(text):
    return [" ".join(line.split()) for line in text.splitlines()]


def test_a_line_a_metric_with_all_that_says_how_sure_it_is():
    console = Console(file=io.StringIO(), width=80)
    console.print(evaluation_table(evaluation()))
    lines = plain(console.file.getvalue())
    assert "IoU .600 .710 +.110 [+.020, +.200] 9/5 <.001 14" in lines
    assert "HD95 ↓ 10.00 12.50 +2.50 [+1.25, +3.00] 4/10 .031 14" in lines


def test_green_is_better_and_red_is_worse_whichever_way_that_is():
    better, worse = (
        next(line for line in drawn(evaluation()).splitlines() if name in line) for name in ("IoU", "HD95")
    )
    assert "\x1b[32m+.110" in better
    assert "\x1b[31m+2.50" in worse


def test_one_image_has_no_interval_and_what_is_missing_is_said():
    said = plain(
        drawn(
            evaluation(
                difference={"iou": measured(0.11, better=1, worse=0), "hd95": measured(NAN, better=0, worse=0)},
                wilcoxon={"iou": {"p": 1.0}, "hd95": {"p": NAN}},
                without_gold=["a", "b"],
                not_counted={"policy": {"iou": 3, "hd95": 3}, "reference": {"hd95": 1}},
            ),
            width=300,
            colours=None,
        )
    )
    assert "IoU .600 .710 +.110 1/0 1.000 14" in said
    assert "HD95 ↓ 10.00 12.50 – 0/0 – 14" in said
    caption = " ".join(" ".join(said).split())
    assert "2 more have no gold and were left out" in caption
    assert "3 do not count for the policy in any metric" in caption
    assert "1 do not count for the reference in HD95" in caption


def test_one_network_alone():
    alone = {key: value for key, value in evaluation().items() if key not in ("reference", "difference", "wilcoxon")}
    alone |= {"not_counted": {"policy": {}}, "policy": {"iou": measured(0.5, 0.25, 0.75), "hd95": measured(1.0)}}
    assert "IoU .500 [.250, .750] 14" in plain(drawn(alone))
