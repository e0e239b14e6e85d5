"""The HTML report about a run: numbers as in the files, no requests, and a page whatever is missing."""

import base64
import json
import math
import re

import pytest
from html_folders import IMAGES, Page, evaluation_of, images_csv, png, summary_of, write_run

from segdpo.reports import html_report
from segdpo.reports.run_files import find_runs

NASTY = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>"


@pytest.fixture
def run(tmp_path):
    return write_run(tmp_path / "run", summary_of(), evaluation=evaluation_of())


def page_of(*paths):
    text = html_report(list(paths))
    page = Page(text)
    assert page.open == []
    check_stays_inside(page, text)
    return page


def check_stays_inside(page, text):
    assert all(address.startswith(("data:image/png;base64,", "#")) for address in page.addresses)
    assert not re.search(r"url\(|@import|@font-face", text)
    assert not {"script", "iframe", "link", "object", "embed", "form", "base"} & set(page.tags)
    assert page.policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def test_the_numbers_are_those_of_the_files(run):
    page = page_of(run)
    assert page.says("Better by 0.150 IoU")
    assert page.says("[+0.050, +0.250]", "4 test images", "0.650", "reference’s 0.500", "better on 3", "worse on 1")
    assert page.row("IoU") == [
        "IoU", "0.500 [0.400, 0.600]", "0.650 [0.550, 0.750]", "+0.150 [+0.050, +0.250]", "3", "1", "0.042", "4"
    ]  # fmt: skip
    hd95 = page.row("HD95 ↓")
    assert hd95[1:4] == ["7.750 [5.000, 9.000]", "3.250 [2.000, 4.000]", "−4.500 [−6.000, −3.000]"]
    assert hd95[6] == "< 0.001"
    assert page.row("images won")[2] == "0.750 [0.300, 0.950]"
    assert "What is missing" not in page.text
    assert page.says("No displacement", "chosen gain", "+0.125")
    assert page.row("object") == [
        "object", "IoU", "0.500 [0.400, 0.600]", "0.650 [0.550, 0.750]", "+0.150 [+0.050, +0.250]", "4"
    ]  # fmt: skip


def test_a_difference_is_coloured_by_which_way_is_better(run):
    text = html_report([run])
    assert re.search(r'<td class="better">\s*−4\.500', text)
    worse = summary_of(policy=0.4, low=-0.2, high=-0.05)
    (run / "summary.json").write_text(json.dumps(worse))
    (run / "evaluation/summary.json").unlink()
    text = html_report([run])
    assert "Worse by 0.100 IoU" in text
    assert re.search(r'<td class="worse">\s*−0\.100', text)
    (run / "summary.json").write_text(json.dumps(summary_of(low=-0.05)))
    assert "No clear difference: +0.150 IoU" in html_report([run])


def test_what_was_run(run):
    page = page_of(run)
    assert "segdpo train loss=hinge_anchor seed=0" in page.text
    for said in (
        "hinge_anchor, seed 0",
        "images with preferences 42",
        "judgements 126",
        "seconds, total 61.5",
        "max_steps: 20",
    ):
        assert said in page.text


def test_the_images_that_got_worse_are_listed_and_shown(run):
    page = page_of(run)
    assert page.says("1 of 4 images (25 %)", "0.050")
    assert page.row("c") == ["c", "0.600", "0.550", "−0.050"]
    assert "a · IoU 0.400 → 0.700 (+0.300)" in page.text
    assert "c · IoU 0.600 → 0.550 (−0.050)" in page.text
    pictures = [base64.b64decode(address.partition(",")[2]) for address in page.addresses]
    assert pictures == [png()] * 3


def test_curves_under_policy_and_reference(run):
    page = page_of(run)
    for title in ("s⁺, score", "s⁻, score", "h, margin gained", "Chosen gain", "IoU with gold", "Loss"):
        assert title in page.text
    assert {"policy", "reference"} <= set(page.words)
    assert "ECE 0.0123, Brier 0.0456" in page.text


def test_a_loss_without_reference_says_so(tmp_path):
    metrics = "epoch,step,train/pairs/margin,train/score/policy_chosen\n0,0,0.1,-0.2\n0,10,0.3,-0.1\n"
    page = page_of(write_run(tmp_path / "run", summary_of(), metrics=metrics))
    assert page.says("s⁺ − s⁻", "no reference")


def test_a_run_that_became_nan_says_from_where(tmp_path):
    nan = math.nan
    summary = summary_of(policy=nan, low=nan, high=nan)
    metrics = "epoch,step,train/loss,train/pairs/margin\n0,0,0.7,0.0\n0,10,nan,nan\n0,20,inf,nan\n"
    page = page_of(write_run(tmp_path / "run", summary, metrics=metrics))
    assert "No result" in page.text
    assert page.says("policy’s IoU", "not a number")
    assert page.says("metrics.csv", "not finite", "train/loss, train/pairs/margin")
    assert page.says("not finite", "step 10")
    assert page.row("IoU")[2:4] == ["–", "–"]


def test_one_image_has_no_interval(tmp_path):
    nan, one = math.nan, [("only", 0.5, 0.65)]
    summary = summary_of(low=nan, high=nan)
    summary["difference"]["iou"] |= {"n": 1, "better": 1, "worse": 0}
    page = page_of(write_run(tmp_path / "run", summary, evaluation={}, images=one))
    assert page.says("+0.150 IoU", "1 test image")
    assert page.says("without an interval")
    assert page.says("0 of 1 images (0 %)")


GONE = ["summary.json", "config.yaml", "metrics.csv", ".hydra/overrides.yaml", "evaluation/summary.json",
        "evaluation/images.csv", "evaluation/classes.csv"]  # fmt: skip


@pytest.mark.parametrize("name", GONE)
def test_a_file_that_is_missing_is_named(run, name):
    (run / name).unlink()
    assert page_of(run).says(name, "not there")


@pytest.mark.parametrize("name", GONE)
@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe\x00[", b'id,step\n"', b"[1, 2]", b"\x00" * 99])
def test_a_file_of_anything_still_gives_a_page(run, name, content):
    (run / name).write_bytes(content)
    page_of(run)


@pytest.mark.parametrize("name", GONE)
def test_a_file_cut_anywhere_still_gives_a_page(run, name):
    whole = (run / name).read_bytes()
    for size in range(0, len(whole), 1 + len(whole) // 7):
        (run / name).write_bytes(whole[:size])
        page_of(run)


def test_nothing_but_an_empty_log(tmp_path):
    (tmp_path / "metrics.csv").write_text("")
    page = page_of(tmp_path)
    for facts in (
        ("summary.json", "not there"),
        ("evaluation/", "not there"),
        ("metrics.csv", "no steps"),
        ("No result",),
    ):
        assert page.says(*facts)


def test_a_cut_last_line_counts_not_at_all(run):
    (run / "metrics.csv").write_text("epoch,step,train/loss\n0,0,0.7\n0,10,0.")
    (run / "evaluation/images.csv").write_text(images_csv().rstrip("\n"))
    page = page_of(run)
    assert page.says("metrics.csv", "cut")
    assert page.says("1 of 3 images (33 %)")


def test_pictures_that_are_cut_or_none_are_named(run):
    overlays = run / "evaluation/overlays"
    (overlays / "worse_1_c.png").write_bytes(png()[:-5])
    (overlays / "better_1_a.png").write_text("<svg onload='alert(1)'/>")
    page = page_of(run)
    assert page.says("better_1_a.png, worse_1_c.png", "cut")
    assert len(page.addresses) == 1


def test_a_contradiction_between_summaries_is_named(run):
    (run / "summary.json").write_text(json.dumps(summary_of(policy=0.7)))
    assert page_of(run).says("summary.json", "evaluation/", "policy", "0.700", "0.650")


def test_images_without_iou_are_counted(tmp_path):
    images = [*IMAGES, ("empty", math.nan, math.nan)]
    page = page_of(write_run(tmp_path / "run", summary_of(), evaluation=evaluation_of(), images=images))
    assert page.says("1 of 5 images", "no IoU", ": empty.")


def test_what_others_wrote_stays_text(tmp_path):
    images = [(NASTY, 0.6, 0.5), (f"{NASTY} b", 0.5, 0.6)]
    summary = summary_of(loss=NASTY, data=NASTY, versions={NASTY: NASTY})
    evaluation = evaluation_of(images) | {"policy": {"iou": {"mean": 0.65}, NASTY: {"mean": NASTY}}}
    run = write_run(tmp_path / "a<b>&c", summary, [f"loss={NASTY}", "seed=0"], METRICS_NASTY, evaluation, images)
    (run / "config.yaml").write_text(f"# {NASTY}\n")
    (run / "evaluation/overlays/better_2_<b onclick=x>.png").write_bytes(png())
    (run / "evaluation/classes.csv").write_text(f"class,metric,network,mean\n<b>x,{'<i>'},policy,1\n")
    for page in (page_of(run), page_of(run, write_run(tmp_path / "other", summary, [f"loss={NASTY}2", "seed=1"]))):
        assert NASTY in page.text
        assert not {"b", "i"} & set(page.tags)


METRICS_NASTY = "epoch,step,train/loss,<script>\n0,0,1.0,nan\n0,1,1.0,nan\n"


def test_an_evaluation_alone(run):
    page = page_of(run / "evaluation")
    assert page.says("evaluation, not a run")
    assert page.row("IoU")[3] == "+0.150 [+0.050, +0.250]"


def test_a_network_alone_is_neither_better_nor_worse(run):
    alone = {key: value for key, value in evaluation_of().items() if key in ("metrics", "policy", "calibration")}
    (run / "evaluation/summary.json").write_text(json.dumps(alone))
    (run / "evaluation/overlays/lowest_1_a.png").write_bytes(png())
    (run / "evaluation/images.csv").write_text("id,policy_iou\na,0.7\nb,0.6\n")
    page = page_of(run / "evaluation")
    assert page.says("IoU 0.650")
    assert page.says("[0.550, 0.750]", "4 test images", "reference", "not known")
    assert page.row("IoU")[1:4] == ["–", "0.650 [0.550, 0.750]", "–"]
    assert "a · IoU 0.700" in page.text
    assert "IoU, image by image" in page.text
    assert "Change, image by image" not in page.text


def test_the_lowest_of_one_network_are_shown(tmp_path):
    (tmp_path / "overlays").mkdir()
    (tmp_path / "overlays/lowest_1_b.png").write_bytes(png())
    (tmp_path / "images.csv").write_text("id,policy_iou\na,0.7\nb,0.6\n")
    (tmp_path / "summary.json").write_text(json.dumps({"policy": {"iou": {"mean": 0.65, "n": 2}}, "main": "iou"}))
    page = page_of(tmp_path)
    assert page.tags.count("img") == 1
    assert "b · IoU 0.600" in page.text
    assert "has no pictures" not in page.text


def test_an_invented_object_is_a_loss_of_one(tmp_path):
    images = [*IMAGES, ("invented", math.nan, 0.0), ("removed", 0.0, math.nan), ("empty", math.nan, math.nan)]
    page = page_of(write_run(tmp_path / "run", summary_of(), evaluation=evaluation_of(), images=images))
    # Of IMAGES c lost .05; and here 1.
    assert page.says("2 of 6 images (33 %)", "0.525")
    assert page.row("invented")[1:] == ["1.000", "0.000", "−1.000"]
    assert page.says("1 of 7 images", "no IoU", ": empty.")


def test_without_iou_nothing_is_said_of_who_got_worse(tmp_path):
    """An evaluation with --metrics hd95: its list of the worst is not in IoU."""
    (tmp_path / "images.csv").write_text("id,policy_hd95,reference_hd95\na,7.0,5.0\nb,6.0,5.5\n")
    numbers = {"policy": {"hd95": {"mean": 6.5}}, "reference": {"hd95": {"mean": 5.25}}}
    numbers["difference"] = {"hd95": {"mean": 1.25, "low": 0.5, "high": 2.0, "n": 2, "better": 0, "worse": 2}}
    (tmp_path / "summary.json").write_text(json.dumps(numbers | {"main": "hd95", "worst": [["a", -2.0], ["b", -0.5]]}))
    page = page_of(tmp_path)
    assert "2" in next(row for row in page.rows if row[0].startswith("HD95"))
    assert "No image is known to have got worse" not in page.text
    assert "−2.000" not in page.text


def test_displacement_is_said(run):
    summary = summary_of()
    summary["pairs"]["chosen_gain"] = -0.25
    (run / "summary.json").write_text(json.dumps(summary))
    assert page_of(run).says("Displaced", "chosen gain −0.250")


def test_long_curves_are_smoothed_and_thinned(tmp_path):
    lines = [f"0,{step},{step % 2},{'nan' if step == 7 else 1.0}" for step in range(1000)]
    metrics = "\n".join(["epoch,step,train/loss,train/pairs/chosen_gain", *lines, ""])
    text = html_report([write_run(tmp_path / "run", summary_of(), metrics=metrics)])
    paths = re.findall(r'd="(M[^"]+)"', text)
    assert max(path.count("L") for path in paths) < 300
    assert "not finite from step 7" in text


def test_runs_are_found_2_before_10_and_their_evaluations_are_none(tmp_path):
    for name in ("10", "2", "deep/1"):
        write_run(tmp_path / name, summary_of(), evaluation={})
    assert [str(path.relative_to(tmp_path)) for path in find_runs(tmp_path)] == ["2", "10", "deep/1"]


@pytest.mark.parametrize(("name", "fact"), [("none", "no folder"), (".", r"summary\.json")])
def test_a_folder_without_runs_is_named(tmp_path, name, fact):
    with pytest.raises(FileNotFoundError, match=fact):
        html_report([tmp_path / name])
