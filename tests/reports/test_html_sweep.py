"""The report on several runs: means over seeds, what is missing among them, and runs that hide no others."""

import json
import math

import pytest
import yaml
from html_folders import Page, evaluation_of, summary_of, write_run
from scipy import stats

from segdpo.reports import html_report
from segdpo.reports.html.svg import thinned, tick_texts, ticks
from segdpo.reports.html.sweep import SHOWN_WHOLE, values_of
from segdpo.reports.plots import range_of, range_without_outliers

SEEDS = range(5)


@pytest.fixture
def sweep(tmp_path):
    """hinge at .70 + .01·seed, dpo at .2, five seeds each; the reference is at .5."""
    folder = tmp_path / "losses"
    for number, (loss, seed) in enumerate((loss, seed) for loss in ("hinge", "dpo") for seed in SEEDS):
        policy = 0.7 + 0.01 * seed if loss == "hinge" else 0.2
        write_run(folder / str(number), summary_of(policy, seed=seed), [f"loss={loss}", f"seed={seed}"])
    plan = {"hydra": {"overrides": {"task": ["loss=hinge,dpo", "seed=0,1,2,3,4"], "hydra": ["hydra.mode=MULTIRUN"]}}}
    (folder / "multirun.yaml").write_text(yaml.safe_dump(plan))
    return folder


def page_of(*paths):
    page = Page(html_report(list(paths)))
    assert page.open == []
    return page


def test_means_and_intervals_over_seeds(sweep):
    page = page_of(sweep)
    values = [0.7 + 0.01 * seed for seed in SEEDS]
    low, high = stats.t.interval(0.95, 4, loc=0.72, scale=stats.sem(values))
    group = page.row("hinge")
    assert group[1] == "0.500 [0.500, 0.500]"
    assert group[2] == f"0.720 [{low:.3f}, {high:.3f}]"
    assert group[3] == f"+0.220 [+{low - 0.5:.3f}, +{high - 0.5:.3f}]"
    assert group[-1] == "5"
    assert page.says("Best: hinge")
    assert page.says("IoU 0.720", "policy − reference +0.220", "2 groups: 1 better than the reference, 1 worse")
    assert "segdpo train -m loss=hinge,dpo seed=0,1,2,3,4" in page.text
    assert "What is missing" not in page.text.split("The runs")[0]


def test_every_seed_is_a_point(sweep):
    page = page_of(sweep)
    for seed in SEEDS:
        assert f"seed {seed}: {0.7 + 0.01 * seed:.4f}" in page.text


def test_three_seeds_missing_are_named(sweep):
    for number in (2, 3, 4):
        (sweep / f"{number}/summary.json").unlink()
    page = page_of(sweep)
    assert page.row("hinge")[-1] == "2"
    assert page.says("hinge", "seeds 2, 3, 4 missing", "2 runs")
    assert page.says("loss=hinge seed=3", "unfinished", "summary.json in 3")
    assert page.says("7 of 10 runs")


def test_runs_that_were_not_started_are_counted(sweep):
    for number in range(7, 10):
        for path in sorted((sweep / str(number)).rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
    page = page_of(sweep)
    assert page.says("losses", "3 of 10 runs", "not started")
    assert page.says("dpo", "seeds 2, 3, 4 missing")


def test_a_plan_in_the_experiment_counts_too(sweep):
    plan = {"sweeper": {"params": {"loss": "hinge,dpo,sft", "seed": "range(0,6)"}}, "overrides": {"task": []}}
    (sweep / "multirun.yaml").write_text(yaml.safe_dump({"hydra": plan}))
    page = page_of(sweep)
    assert page.says("losses", "8 of 18 runs", "not started")
    assert page.says("hinge", "seed 5 missing")


@pytest.mark.parametrize("text", ["choice(a,b)", "[1,2],[3,4]", "'a,b'", "glob(*,exclude=x)"])
def test_what_is_no_plain_list_is_not_counted(text):
    assert values_of(text) == []


@pytest.mark.parametrize("content", ["{", "[]", "hydra: 3", "hydra: {overrides: {task: 5}}", "\x00"])
def test_an_odd_plan_is_no_plan(sweep, content):
    (sweep / "multirun.yaml").write_text(content)
    assert not page_of(sweep).says("not started")


def test_a_nan_run_and_a_damaged_one_are_named(sweep):
    summary = summary_of(math.nan, seed=0, low=math.nan, high=math.nan)
    (sweep / "0/summary.json").write_text(json.dumps(summary))
    (sweep / "1/summary.json").write_text('{"policy": {"iou": {"mean": "much"}}}')
    (sweep / "2/summary.json").write_text("{")
    page = page_of(sweep)
    assert page.says("loss=hinge seed=0", "no IoU", "(0)")
    assert page.says("loss=hinge seed=1", "left out", "policy.iou.mean", "much")
    assert page.says("loss=hinge seed=2", "unfinished")


def test_without_a_single_finished_run_there_is_a_page(sweep):
    for path in sweep.rglob("summary.json"):
        path.unlink()
    page = page_of(sweep)
    assert page.says("No result")
    assert page.says("0 of 10 runs")


def test_a_run_that_diverged_hides_no_other(sweep):
    summary = summary_of(0.2, seed=4)
    summary["pairs"]["chosen_gain"] = -4e10
    (sweep / "9/summary.json").write_text(json.dumps(summary))
    assert "1 outside, to −4e+10" in page_of(sweep).text


def test_seeds_and_images_together(tmp_path):
    changes = {0: (0.1, 0.3), 1: (0.2, 0.4)}
    for seed, (one, two) in changes.items():
        images = [("a", 0.5, 0.5 + one), ("b", 0.5, 0.5 + two)]
        write_run(tmp_path / str(seed), summary_of(seed=seed), [f"seed={seed}"], None, evaluation_of(), images)
    page = page_of(tmp_path)
    # The mean of .1, .3, .2, .4.
    found = dict(zip(page.row("group"), page.row("all runs"), strict=True))
    assert found["over seeds and images"].startswith("+0.250 [")


def test_images_that_are_odd_count_for_no_seed(tmp_path):
    images = [("a", 0.5, 0.6), ("a", 0.5, 0.8), ("b", 0.5, math.inf), ("", math.nan, 0.5)]
    for seed in range(3):
        write_run(tmp_path / str(seed), summary_of(seed=seed), [f"seed={seed}"], None, evaluation_of(), images)
    found = page_of(tmp_path)
    assert "over seeds and images" in found.text


def test_groups_are_held_against_one_another(tmp_path):
    for seed in SEEDS:
        for variant, policy in (("dense", 0.8), ("sft", 0.65), ("dpo", 0.71)):
            policy += 0.01 * seed * (variant == "dpo")
            words = [f"+experiment/variant={variant}", f"seed={seed}"]
            write_run(tmp_path / f"{variant}{seed}", summary_of(policy, seed=seed), words)
    page = Page(html_report([tmp_path], dense="dense", against="sft"))
    names = page.row("group")
    found = dict(zip(names, page.row("dpo"), strict=True))
    # Mean policy .73, so .23 of the .30 that dense masks give, and .08 above sft; deviation of the five .0158.
    assert found["recovery"].startswith("77 % [70, ")
    low, high = stats.t.interval(0.95, 4, loc=0.08, scale=stats.sem([0.06, 0.07, 0.08, 0.09, 0.10]))
    assert found["− sft"] == f"+0.080 [+{low:.3f}, +{high:.3f}]"
    assert found["judgements"] == "126"
    assert "Fieller" in page.text
    # Two rows and an interval of one of them: dense is above sft by .15 in every run, p 0; dpo by .08 with t 11.3.
    assert page.says("2 rows (Holm)", "above 0: dense (p < 0.001), dpo (p < 0.001)", "below 0: none")


def test_evaluations_are_no_runs_that_failed(tmp_path):
    for name in ("one", "two"):
        write_run(tmp_path / name, summary_of(), evaluation=evaluation_of())
    page = page_of(tmp_path / "one/evaluation", tmp_path / "two/evaluation")
    assert page.says("2 evaluations.")
    assert not page.says("unfinished")
    assert not page.says("No result")
    beside = page_of(tmp_path / "one", tmp_path / "two/evaluation")
    assert beside.says("1 of 1 run")
    assert beside.says("evaluation, not a run")


def test_an_infinite_value_is_named_and_counts_in_no_mean(tmp_path):
    for seed, gain in enumerate((0.25, -math.inf)):
        summary = summary_of(0.7 + 0.1 * seed, seed=seed)
        summary["pairs"]["chosen_gain"] = gain
        write_run(tmp_path / str(seed), summary, [f"seed={seed}"])
    page = page_of(tmp_path)
    assert page.says("seed=1", "infinite chosen gain")
    assert "n 1" in page.row("all runs")[4]


def test_few_runs_are_shown_whole_and_many_in_brief(tmp_path):
    folders = [
        write_run(tmp_path / str(k), summary_of(seed=k), [f"seed={k}"], evaluation=evaluation_of())
        for k in range(SHOWN_WHOLE + 1)
    ]
    whole, brief = page_of(*folders[:SHOWN_WHOLE]), page_of(*folders)
    assert whole.tags.count("img") == 3 * SHOWN_WHOLE
    assert brief.tags.count("img") == 0
    assert brief.tags.count("details") >= SHOWN_WHOLE + 1
    assert "In brief" in brief.text


def test_one_seed_twice_is_told(tmp_path):
    for name in "ab":
        write_run(tmp_path / name, summary_of(seed=3), ["loss=dpo", "seed=3"])
    assert page_of(tmp_path).says("all runs", "seed 3 more than once")


def test_scales():
    assert ticks(0, 1) == [0, 0.2, 0.4, 0.6, 0.8, 1]
    assert ticks(-4e10, 1e9) == [-4e10, -3e10, -2e10, -1e10, 0]
    assert ticks(1, 1) == []
    assert tick_texts([0.5, 1.0]) == ["0.5", "1.0"]
    assert range_of([]) == (0, 1)
    assert range_of([2, 2], pad=0.5) == pytest.approx((1.9, 2.1))
    low, high = range_without_outliers([1, 2, 3, 1e9, math.inf])
    assert low == pytest.approx(0.88)
    assert high == pytest.approx(3.12)


def test_thinning_keeps_the_means_and_the_gaps():
    xs, ys = thinned(range(10), [1, 3, math.nan, math.nan, 5, math.nan, 0, 0, 2, 4], most=5)
    assert xs == [0.5, 2.5, 4.5, 6.5, 8.5]
    assert ys[0] == 2
    assert math.isnan(ys[1])
    assert ys[2:] == [5, 0, 3]
