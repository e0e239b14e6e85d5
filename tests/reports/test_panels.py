"""Panels and strips: their columns, overlaps counted by hand, and colours found again in the file."""

import numpy as np
import pytest
from PIL import Image

from segdpo.data import DIFFERENCE, PanelRow, Shapes, class_colours
from segdpo.reports import panels
from segdpo.reports.panels import AGAINST_GOLD, GAP, LINE, OF_A_PAIR, PAIR, SMALLEST, draw_panel, draw_strip


def square(side=8, label=1):
    mask = np.zeros((16, 16), np.uint8)
    mask[:side, :side] = label
    return mask


def row(**masks):
    return PanelRow("case-1", np.full((16, 16, 3), 128, np.uint8), **masks)


@pytest.fixture
def drawn(monkeypatch, tmp_path):
    """Return a function that draws a panel and returns captions by column, row by row, and the texts of the legend."""

    def draw(rows, **options):
        seen = []
        compose = panels.compose
        monkeypatch.setattr(panels, "compose", lambda *given: seen.append(given) or compose(*given))
        draw_panel(rows, tmp_path / "panel.png", **options)
        tiles, legend, _ = seen[0]
        return [{name: tile.caption for name, tile in line.items()} for line in tiles], list(legend)

    return draw


def test_columns_and_overlaps_counted_by_hand(drawn):
    rows = [row(chosen=square(8), rejected=square(4), policy=square(6), gold=square(8))]
    # 64 of 64, 16 of 64, 36 of 64; nobody brought a reference, so it has no column.
    expected = {
        "image": "case-1",
        "chosen": "IoU 1.000",
        "rejected": "IoU 0.250",
        "policy": "IoU 0.562",
        "gold": "",
    }
    assert drawn(rows) == ([expected], ["object", *AGAINST_GOLD])


def test_ignored_pixels_do_not_count_and_a_missing_mask_leaves_its_place(drawn, tmp_path):
    gold = square(8)
    gold[4:] = 255
    captions, _ = drawn([row(policy=square(4), gold=gold), row(reference=square(8))])
    # Of gold, 4 rows of 8 are left; the policy has 4 × 4 of them.
    assert captions[0] == {"image": "case-1", "policy": "IoU 0.500", "gold": ""}
    assert captions[1] == {"image": "case-1", "reference": ""}
    picture = np.array(Image.open(tmp_path / "panel.png"))
    assert picture.shape == (LINE + 2 * (SMALLEST + LINE + GAP) + LINE, 4 * (SMALLEST + GAP) - GAP, 3)
    empty = picture[LINE + LINE : LINE + SMALLEST, SMALLEST + GAP : 2 * SMALLEST + GAP]
    assert (empty == 255).all()


def test_a_pair_without_gold_is_compared(drawn, tmp_path):
    captions, legend = drawn([row(chosen=square(8), rejected=square(4))])
    assert list(captions[0]) == ["image", "chosen", "rejected", PAIR]
    assert legend == ["object", *OF_A_PAIR[:3]]
    picture = np.array(Image.open(tmp_path / "panel.png"))[LINE:, 3 * (SMALLEST + GAP) :]
    # 16 pixels a pixel: rows and columns below 64 are in both, below 128 in the chosen mask alone.
    for place, colour in ((32, DIFFERENCE[0]), (96, DIFFERENCE[1])):
        assert picture[place, place].tolist() == [round(0.6 * 128 + 0.4 * part) for part in colour]
    assert picture[130, 130].tolist() == [128] * 3
    captions, legend = drawn([row(chosen=square(8), rejected=square(4))], classes=("background", "a", "b"))
    assert legend == ["a", "b", *OF_A_PAIR]


def test_an_empty_image_is_said_to_be_empty(drawn):
    assert drawn([row(policy=square(0), gold=square(0))])[0][0]["policy"] == "nothing to find"


def test_a_class_0_of_its_own_counts(drawn):
    # Class 0 "sky": 256 − 64 of 256 − 16; class 1: 16 of 64.
    captions, legend = drawn([row(policy=square(4), gold=square(8))], classes=("sky", "road"))
    assert captions[0]["policy"] == f"IoU {(192 / 240 + 16 / 64) / 2:.3f}"
    assert legend == ["sky", "road"]


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
    assert picture.shape == (2 * LINE + 2 * (SMALLEST + LINE + GAP) + LINE, 5 * (SMALLEST + GAP) - GAP, 3)


def test_a_long_legend_takes_several_lines(tmp_path):
    classes = ("background", *(f"a class with a long name, number {k}" for k in range(12)))
    draw_panel([row(policy=square(8))], tmp_path / "panel.png", classes=classes)
    picture = np.array(Image.open(tmp_path / "panel.png"))
    # Two of about 220 pixels in each line of 518, so that there are 6 lines.
    assert picture.shape[0] == LINE + SMALLEST + LINE + GAP + 6 * LINE
    for colour in class_colours(12):
        assert (picture[-6 * LINE :] == colour).all(-1).sum() >= 12 * 12


def test_a_thin_line_of_a_large_image_is_there_in_every_row(tmp_path):
    mask = np.zeros((1024, 1024), np.uint8)
    mask[:, 501] = 1
    draw_panel([PanelRow("a", np.full((1024, 1024, 3), 90, np.uint8), policy=mask)], tmp_path / "panel.png")
    shown = np.array(Image.open(tmp_path / "panel.png"))[LINE : LINE + 512, 512 + GAP :].astype(int)
    assert (abs(shown - 90).max(axis=(1, 2)) > 60).all()


def test_grey_images_wide_images_and_long_names(drawn):
    image = np.zeros((20, 60, 1), np.uint8)
    captions, _ = drawn([PanelRow("a/very/long/path/to/an/image/of/a/cell.png", image, policy=image[..., 0])])
    assert captions[0]["image"] == "…to/an/image/of/a/cell.png"


def test_no_rows_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="at least one PanelRow"):
        draw_panel([], tmp_path / "panel.png")


@pytest.mark.parametrize(("size", "shown"), [((32, 64), (128, 256)), ((600, 300), (256, 128)), ((1, 1), (256, 256))])
def test_a_strip_has_a_tile_of_one_size_for_each_mask(size, shown, tmp_path):
    mask = np.zeros(size, np.uint8)
    row = PanelRow("a", np.full((*size, 3), 90, np.uint8), gold=mask, policy=mask)
    draw_strip(row, tmp_path / "strip.png", classes=("background", "object"), notes={"policy": "iou 0.5"})
    assert max(shown) == SMALLEST
    assert Image.open(tmp_path / "strip.png").size == (3 * (shown[1] + GAP) - GAP, shown[0] + 3 * LINE + GAP)


def test_what_a_network_misses_is_drawn_on_its_mask_alone(tmp_path):
    gold = np.zeros((64, 64), np.uint8)
    gold[:, 32:] = 1
    row = PanelRow("a", np.full((64, 64, 3), 90, np.uint8), gold=gold, policy=np.zeros_like(gold))
    draw_strip(row, tmp_path / "strip.png", classes=("background", "object"), notes={})
    pixels = np.array(Image.open(tmp_path / "strip.png"))[LINE:]
    # The order of a panel: image, policy, gold.
    of_policy, of_gold = (pixels[:256, left : left + 256] for left in (256 + GAP, 2 * (256 + GAP)))
    missing, orange = DIFFERENCE[2], class_colours(1)[0].tolist()
    for shown, colour in ((of_policy, missing), (of_gold, orange)):
        # The outline is the last column before the first of gold, once both are four times as large.
        assert np.flatnonzero((shown == colour).all(-1)[100]).tolist() == [127]
        assert (shown[:, :127] == 90).all()
        assert shown[0, 200].tolist() == [round(0.6 * 90 + 0.4 * part) for part in colour]


def test_images_of_one_channel_and_of_many_are_drawn(tmp_path):
    for channels in (1, 2, 5):
        draw_strip(
            PanelRow("a", np.full((8, 8, channels), 90, np.uint8)), tmp_path / "one.png", classes=("a", "b"), notes={}
        )
        assert np.array(Image.open(tmp_path / "one.png")).shape == (SMALLEST + 3 * LINE + GAP, SMALLEST, 3)
