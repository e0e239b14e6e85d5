"""The table of an evaluation, and an image as a strip."""

from io import StringIO

import numpy as np
import pytest
from PIL import Image as Pillow
from rich.console import Console

from segdpo.data.pictures import PanelRow
from segdpo.reports.panels import GAP, STRIP_SIDE, TITLE, draw_strip
from segdpo.reports.tables import evaluation_table

NAN = float("nan")


def interval(mean, low=NAN, high=NAN, **more):
    return {"mean": mean, "low": low, "high": high, "n": 14, **more}


def summary(**changed):
    return {
        "metrics": ["iou", "hd95"],
        "higher_is_better": {"iou": True, "hd95": False},
        "images": 14,
        "without_gold": [],
        "not_counted": {"policy": {}, "reference": {}},
        "policy": {"iou": interval(0.71), "hd95": interval(12.5)},
        "reference": {"iou": interval(0.6), "hd95": interval(10.0)},
        "difference": {
            "iou": interval(0.11, 0.02, 0.2, better=9, worse=5),
            "hd95": interval(2.5, 1.25, 3.0, better=4, worse=10),
        },
        "wilcoxon": {"iou": {"p": 0.0002}, "hd95": {"p": 0.0312}},
    } | changed


def drawn(content, width=80, colours="standard"):
    console = Console(file=StringIO(), width=width, color_system=colours)
    console.print(evaluation_table(content))
    return console.file.getvalue()


def plain(text):
    return [" ".join(line.split()) for line in text.splitlines()]


def test_a_line_a_metric_with_all_that_says_how_sure_it_is():
    console = Console(file=StringIO(), width=80)
    console.print(evaluation_table(summary()))
    lines = plain(console.file.getvalue())
    assert "IoU .600 .710 +.110 [+.020, +.200] 9/5 <.001 14" in lines
    assert "HD95 ↓ 10.00 12.50 +2.50 [+1.25, +3.00] 4/10 .031 14" in lines


def test_green_is_better_and_red_is_worse_whichever_way_that_is():
    better, worse = (next(line for line in drawn(summary()).splitlines() if name in line) for name in ("IoU", "HD95"))
    assert "\x1b[32m+.110" in better
    assert "\x1b[31m+2.50" in worse


def test_one_image_has_no_interval_and_what_is_missing_is_said():
    said = plain(
        drawn(
            summary(
                difference={"iou": interval(0.11, better=1, worse=0), "hd95": interval(NAN, better=0, worse=0)},
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
    alone = {key: value for key, value in summary().items() if key not in ("reference", "difference", "wilcoxon")}
    alone |= {"not_counted": {"policy": {}}, "policy": {"iou": interval(0.5, 0.25, 0.75), "hd95": interval(1.0)}}
    assert "IoU .500 [.250, .750] 14" in plain(drawn(alone))


@pytest.mark.parametrize(("size", "shown"), [((32, 64), (128, 256)), ((600, 300), (256, 128)), ((1, 1), (256, 256))])
def test_a_strip_has_a_cell_for_each_mask_at_one_size(size, shown, tmp_path):
    mask = np.zeros(size, np.uint8)
    row = PanelRow("a", np.full((*size, 3), 90, np.uint8), gold=mask, policy=mask)
    draw_strip(row, tmp_path / "strip.png", classes=("background", "object"), notes={"policy": "iou 0.5"})
    assert max(shown) == STRIP_SIDE
    assert Pillow.open(tmp_path / "strip.png").size == (3 * shown[1] + 2 * GAP, shown[0] + TITLE)


def test_the_outline_of_gold_is_white_on_the_networks_masks_alone(tmp_path):
    gold = np.zeros((64, 64), np.uint8)
    gold[:, 32:] = 1
    row = PanelRow("a", np.full((64, 64, 3), 90, np.uint8), gold=gold, policy=np.zeros_like(gold))
    draw_strip(row, tmp_path / "strip.png", classes=("background", "object"), notes={})
    pixels = np.array(Pillow.open(tmp_path / "strip.png"))[TITLE:]
    of_gold, of_policy = (pixels[:, left : left + STRIP_SIDE] for left in (STRIP_SIDE + GAP, 2 * (STRIP_SIDE + GAP)))
    assert not (of_gold == 255).all(-1).any()
    # The first column of gold, once both are four times as large.
    assert np.flatnonzero((of_policy == 255).all(-1)[100]).tolist() == [128]
    assert (of_policy[:, :128] == 90).all()


def test_images_of_one_channel_and_of_many_are_drawn(tmp_path):
    for channels in (1, 2, 5):
        draw_strip(
            PanelRow("a", np.full((8, 8, channels), 90, np.uint8)), tmp_path / "one.png", classes=("a", "b"), notes={}
        )
        assert np.array(Pillow.open(tmp_path / "one.png")).shape == (STRIP_SIDE + TITLE, STRIP_SIDE, 3)
