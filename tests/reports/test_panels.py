"""Panels and strips: their images, overlaps counted by hand, and colours found again in the file."""

import numpy as np
import pytest
from PIL import Image

from segdpo.data.pictures import PanelRow, class_colours
from segdpo.data.shapes import Shapes
from segdpo.reports.panels import GAP, STRIP_SIDE, TITLE, draw_panel, draw_strip, panel_figure


def square(side=8, label=1):
    mask = np.zeros((16, 16), np.uint8)
    mask[:side, :side] = label
    return mask


def row(**masks):
    return PanelRow("case-1", np.full((16, 16, 3), 128, np.uint8), **masks)


def cells(figure):
    return [(axes.get_title(), axes.get_xlabel()) for axes in figure.axes]


def test_columns_and_overlaps_counted_by_hand():
    figure = panel_figure([row(chosen=square(8), rejected=square(4), policy=square(6), gold=square(8))])
    # 64 of 64, 16 of 64, 36 of 64; nobody brought a reference, so it has no column.
    assert cells(figure) == [
        ("image", "case-1"),
        ("chosen", "IoU 1.000"),
        ("rejected", "IoU 0.250"),
        ("policy", "IoU 0.562"),
        ("gold", ""),
    ]


def test_ignored_pixels_do_not_count_and_a_missing_mask_leaves_its_place():
    gold = square(8)
    gold[4:] = 255
    figure = panel_figure([row(policy=square(4), gold=gold), row(reference=square(8))])
    # Of gold, 4 rows of 8 are left; the policy has 4 × 4 of them.
    assert cells(figure)[:4] == [("image", "case-1"), ("reference", ""), ("policy", "IoU 0.500"), ("gold", "")]
    assert [text.get_text() for text in figure.axes[1].texts] == ["none"]


def test_an_empty_image_is_said_to_be_empty():
    figure = panel_figure([row(policy=square(0), gold=square(0))])
    assert cells(figure)[1] == ("policy", "nothing to find")


def test_a_class_0_of_its_own_counts():
    # Class 0 "sky": 256 − 64 of 256 − 16; class 1: 16 of 64.
    figure = panel_figure([row(policy=square(4), gold=square(8))], classes=("sky", "road"))
    assert cells(figure)[1] == ("policy", f"IoU {(192 / 240 + 16 / 64) / 2:.3f}")


def test_classes_have_their_colours_in_the_file(tmp_path):
    data = Shapes(2, classes=4)
    rows = [
        PanelRow(r.id, r.image, chosen=r.masks[0], rejected=r.masks[1], policy=r.masks[2], gold=r.gold)
        for r in (data[0], data[1])
    ]
    draw_panel(rows, tmp_path / "panels" / "epoch_000.png", classes=data.classes, title="epoch 0")
    picture = np.asarray(Image.open(tmp_path / "panels" / "epoch_000.png").convert("RGB"))
    for colour in class_colours(3):
        assert (picture == colour).all(-1).sum() > 100
    assert picture.shape[1] == 5 * 240


def test_grey_images_wide_images_and_long_names():
    image = np.zeros((20, 60, 1), np.uint8)
    figure = panel_figure([PanelRow("a/very/long/path/to/an/image/of/a/cell.png", image, policy=image[..., 0])])
    assert figure.axes[0].get_xlabel() == "…to/an/image/of/a/cell.png"


def test_no_rows_is_an_error():
    with pytest.raises(ValueError, match="at least one PanelRow"):
        panel_figure([])


@pytest.mark.parametrize(("size", "shown"), [((32, 64), (128, 256)), ((600, 300), (256, 128)), ((1, 1), (256, 256))])
def test_a_strip_has_a_tile_of_one_size_for_each_mask(size, shown, tmp_path):
    mask = np.zeros(size, np.uint8)
    row = PanelRow("a", np.full((*size, 3), 90, np.uint8), gold=mask, policy=mask)
    draw_strip(row, tmp_path / "strip.png", classes=("background", "object"), notes={"policy": "iou 0.5"})
    assert max(shown) == STRIP_SIDE
    assert Image.open(tmp_path / "strip.png").size == (3 * shown[1] + 2 * GAP, shown[0] + TITLE)


def test_the_outline_of_gold_is_white_on_the_networks_masks_alone(tmp_path):
    gold = np.zeros((64, 64), np.uint8)
    gold[:, 32:] = 1
    row = PanelRow("a", np.full((64, 64, 3), 90, np.uint8), gold=gold, policy=np.zeros_like(gold))
    draw_strip(row, tmp_path / "strip.png", classes=("background", "object"), notes={})
    pixels = np.array(Image.open(tmp_path / "strip.png"))[TITLE:]
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
        assert np.array(Image.open(tmp_path / "one.png")).shape == (STRIP_SIDE + TITLE, STRIP_SIDE, 3)
