"""Sweeps: run folders written by hand, grouped, compared, and shown as table, CSV and picture."""

import csv
import io
import json
import math

import numpy as np
import pytest
import yaml
from PIL import Image as Pillow
from rich.console import Console
from scipy import stats

from segdpo.cli import collect, main
from segdpo.metrics import Interval
from segdpo.reports import read_sweep
from segdpo.reports.runs import read_run, student_interval
from segdpo.reports.sweep import fieller
from segdpo.reports.text import plus_minus


def write_run(folder, overrides, policy=None, reference=0.5, gain=0.1, win=0.6):
    """A run with a summary, or (policy None) an unfinished one."""
    (folder / ".hydra").mkdir(parents=True)
    (folder / ".hydra/overrides.yaml").write_text(yaml.safe_dump(overrides))
    if policy is not None:
        seed = dict(word.split("=", 1) for word in overrides).get("seed", 0)
        interval = {"low": 0, "high": 1, "n": 100}
        summary = {
            "seed": int(seed),
            "reference": {"iou": {"mean": reference, **interval}},
            "policy": {"iou": {"mean": policy, **interval}},
            "difference": {"iou": {"mean": policy - reference, **interval}, "win_rate": {"rate": win, **interval}},
            "pairs": {"train": 10, "chosen_gain": gain},
        }
        (folder / "summary.json").write_text(json.dumps(summary))


@pytest.fixture
def sweep(tmp_path):
    """dpo at .6 and .8, hinge at .9 and 1.0 (in a folder below), a reference at .5; two unfinished runs."""
    folder = tmp_path / "sweep"
    for number, (loss, seed, policy) in enumerate(
        [("dpo", 0, 0.6), ("dpo", 1, 0.8), ("hinge", 0, 0.9), ("hinge", 1, 1.0)]
    ):
        place = folder / ("deep" if loss == "hinge" else ".") / str(number)
        write_run(place, [f"loss={loss}", f"seed={seed}", "threads=1", "+extra=2"], policy, gain=seed - 0.5)
    write_run(folder / "4", ["loss=dpo", "seed=2"])
    write_run(folder / "5", ["loss=ipo", "seed=0"])
    return folder


def test_rows_means_and_intervals(sweep, capsys):
    assert collect([str(sweep)]) == 0
    lines = capsys.readouterr().out.splitlines()
    # t(.975, 1) = 12.706; .6 and .8: deviation .1414, half width 12.706 · .1414 / √2 = 1.271; .9 and 1: half of that.
    assert lines == [
        "| run | reference | policy | difference | chosen gain | win rate | runs |",
        "|---|---|---|---|---|---|---|",
        "| `hinge` | 0.500 ± 0.000 | 0.950 ± 0.635 | +0.450 ± 0.635 | +0.000 ± 6.353 | 0.600 [0.600, 0.600] | 2 |",
        "| `dpo` | 0.500 ± 0.000 | 0.700 ± 1.271 | +0.200 ± 1.271 | +0.000 ± 6.353 | 0.600 [0.600, 0.600] | 2 |",
        "",
        f"2 unfinished: {sweep}/4, {sweep}/5",
    ]
    assert (sweep / "sweep.md").read_text().splitlines() == lines
    assert Pillow.open(sweep / "sweep.png").size[0] == 1200


def test_the_csv_has_groups_and_runs(sweep, tmp_path):
    assert collect([str(sweep), "--out", str(tmp_path / "new/out")]) == 0
    assert not (sweep / "sweep.csv").exists()
    rows = list(csv.DictReader((tmp_path / "new/out/sweep.csv").open()))
    assert [(row["run"], row["seed"]) for row in rows] == [
        (loss, seed) for loss in ("hinge", "dpo") for seed in ("all", "0", "1")
    ]
    low, high = stats.t.interval(0.95, 1, loc=0.7, scale=stats.sem([0.6, 0.8]))
    found = [float(rows[3][f"policy {bound}"]) for bound in ("mean", "low", "high", "n")]
    np.testing.assert_allclose(found, [0.7, low, high, 2])
    assert float(rows[4]["difference mean"]) == pytest.approx(0.1)
    assert rows[4]["folder"] == str(sweep / "0")


def test_groups_are_what_was_chosen_and_ignored_keys_make_none(tmp_path):
    for number, (beta, seed) in enumerate([("1", 0), ("1", 1), ("10", 0), (None, 0)]):
        words = ["loss=dpo", f"seed={seed}", f"threads={number}"] + ([f"beta={beta}"] if beta else [])
        write_run(tmp_path / str(number), words, 0.6)
    names = {group.name: len(group.runs) for group in read_sweep(tmp_path).groups}
    assert names == {"beta=1": 2, "beta=10": 1, "beta=–": 1}
    assert [group.name for group in read_sweep(tmp_path, ["beta"]).groups] == ["all runs"]


OLD_AND_NEW = [
    ("pairs=tta", "candidates=tta"),
    ("pairs.temperature=2", "candidates.temperature=2"),
    ("pairs=given", "questions=answered"),
    ("rule=best_worst", "questions=best_worst"),
    ("rule.min_gap=.05", "questions.min_gap=.05"),
    ("start=cheap_masks", "reference_training=noisy_masks"),
    ("start=few_masks", "reference_training=few_masks"),
    ("+experiment=worth_cheap_masks", "+experiment=worth_noisy_masks"),
    ("start.images=16", "reference_training.images=16"),
    ("+cell=dense_gold", "+experiment/variant=dense_gold"),
]


@pytest.mark.parametrize(("old", "new"), OLD_AND_NEW)
def test_runs_with_options_of_earlier_versions_are_in_one_row_with_new_ones(tmp_path, old, new):
    write_run(tmp_path / "0", [old, "seed=0", "ckpt_path=last"], 0.6)
    write_run(tmp_path / "1", [new, "seed=1"], 0.7)
    write_run(tmp_path / "2", ["seed=0"], 0.5)
    key, _, value = new.lstrip("+").partition("=")
    name = value if key == "experiment/variant" else f"{key}={value}"
    assert {group.name: len(group.runs) for group in read_sweep(tmp_path).groups} == {
        name: 2,
        name.replace(value, "–"): 1,
    }


def test_an_option_is_ignored_under_its_earlier_name_too(tmp_path):
    write_run(tmp_path / "0", ["candidates=tta", "seed=0"], 0.6)
    write_run(tmp_path / "1", ["candidates=samples", "seed=0"], 0.7)
    assert [group.name for group in read_sweep(tmp_path, ["pairs"]).groups] == ["all runs"]


def test_one_run_has_no_interval_and_what_was_not_measured_is_a_dash(tmp_path):
    write_run(tmp_path / "0", ["loss=sft", "seed=0"], 0.6)
    summary = json.loads((tmp_path / "0/summary.json").read_text())
    summary["pairs"]["chosen_gain"] = float("nan")
    del summary["reference"]
    (tmp_path / "0/summary.json").write_text(json.dumps(summary))
    sweep = read_sweep(tmp_path)
    assert sweep.markdown().splitlines()[2] == "| `all runs` | – | 0.600 | +0.100 | – | 0.600 | 1 |"
    assert collect([str(tmp_path)]) == 0
    assert "nan" in sweep.csv()


def test_the_terminal_shows_the_same_and_colours_what_is_significant(tmp_path):
    for seed in range(3):
        write_run(tmp_path / f"up{seed}", ["loss=up", f"seed={seed}"], 0.7 + seed / 1000)
        write_run(tmp_path / f"down{seed}", ["loss=down", f"seed={seed}"], 0.3 + seed / 1000)
        write_run(tmp_path / f"wild{seed}", ["loss=wild", f"seed={seed}"], 0.3 + seed / 5)
    table = read_sweep(tmp_path).terminal()
    styles = dict(zip(table.columns[0].cells, [row.style for row in table.rows], strict=True))
    assert styles == {"up": "green", "down": "red", "wild": None}
    out = io.StringIO()
    Console(file=out, width=140).print(table)
    assert "0.701 ± 0.002" in out.getvalue()


def test_the_interval_is_scipys_and_counts_no_nan():
    values = [0.3, 0.5, 0.9, 0.4]
    interval = student_interval([*values, math.nan])
    low, high = stats.t.interval(0.95, 3, loc=np.mean(values), scale=stats.sem(values))
    np.testing.assert_allclose([interval.mean, interval.low, interval.high, interval.n], [0.525, low, high, 4])
    assert math.isnan(student_interval([]).mean)


@pytest.mark.parametrize(
    ("prepare", "hint"),
    [
        (lambda folder: None, "segdpo train -m"),
        (lambda folder: write_run(folder / "0", ["seed=0"]), "1 runs there are unfinished"),
    ],
)
def test_a_folder_without_finished_runs_is_named(tmp_path, capsys, prepare, hint):
    prepare(tmp_path)
    assert main(["collect", str(tmp_path)]) == 1
    message = capsys.readouterr().err
    assert str(tmp_path) in message
    assert hint in message
    assert not (tmp_path / "sweep.md").exists()


def test_a_damaged_summary_is_named(tmp_path):
    write_run(tmp_path / "0", ["seed=0"], 0.5)
    (tmp_path / "0/summary.json").write_text("{")
    with pytest.raises(ValueError, match=r"0/summary\.json"):
        read_sweep(tmp_path)


@pytest.mark.parametrize("value", ["much", [0.5], 10**400])
def test_a_measure_that_is_no_number_is_named(tmp_path, value):
    write_run(tmp_path / "0", ["seed=0"], 0.5)
    summary = json.loads((tmp_path / "0/summary.json").read_text())
    summary["policy"]["iou"]["mean"] = value
    (tmp_path / "0/summary.json").write_text(json.dumps(summary))
    with pytest.raises(ValueError, match=r"0/summary\.json.*policy\.iou\.mean"):
        read_sweep(tmp_path)


def write_worth(folder, policies):
    """Write variants, `policies` having a value for each seed; the reference of seed s is at .5 + s/100."""
    for variant, values in policies.items():
        for seed, policy in enumerate(values):
            place = folder / f"{variant}-{seed}"
            words = [f"experiment/variant={variant}", f"seed={seed}", "+experiment=worth"]
            write_run(place, words, policy, 0.5 + seed / 100)
            summary = json.loads((place / "summary.json").read_text())
            summary["pairs"]["judgements"] = 0 if variant == "dense" else 700
            (place / "summary.json").write_text(json.dumps(summary))


def test_recovery_and_paired_differences(tmp_path, capsys):
    write_worth(tmp_path, {"dense": [0.7, 0.72, 0.71], "sft": [0.6, 0.63, 0.62], "best": [0.65, 0.67, 0.67]})
    assert collect([str(tmp_path), "--dense", "dense", "--against", "sft"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith("| runs | judgements | recovery | − sft |")
    found = {row.split("|")[1].strip(" `"): [cell.strip() for cell in row.split("|")[8:-1]] for row in lines[2:5]}
    assert found["dense"][:2] == ["0", "100 % [100, 100]"]
    # .15 + .16 + .15 of .2 + .21 + .19; .05, .04, .05 above sft.
    assert found["best"][0] == "700"
    assert found["best"][1].startswith("77 % [")
    half = stats.t.ppf(0.975, 2) * np.std([0.05, 0.04, 0.05], ddof=1) / np.sqrt(3)
    assert found["best"][2] == f"+0.047 ± {half:.3f}"
    assert found["sft"][2] == "+0.000 ± 0.000"
    row = next(row for row in csv.DictReader((tmp_path / "sweep.csv").open()) if row["run"] == "best")
    assert float(row["recovery mean"]) == pytest.approx(0.46 / 0.6)
    assert float(row["judgements mean"]) == 700


def test_fieller_is_the_set_of_ratios_that_a_t_test_does_not_refuse():
    rng = np.random.default_rng(3)
    below = rng.normal(0.1, 0.02, 5)
    above = 0.8 * below + rng.normal(0, 0.01, 5)
    found = fieller(above.tolist(), below.tolist())
    for bound, sign in ((found.low, -1), (found.high, 1)):
        assert stats.ttest_1samp(above - bound * below, 0).pvalue == pytest.approx(0.05, abs=1e-6)
        assert stats.ttest_1samp(above - (bound + sign * 0.01) * below, 0).pvalue < 0.05
    assert found.low < found.mean < found.high


def test_fieller_covers_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(2000):
        below = rng.normal(0.10, 0.03, 5)
        found = fieller((0.7 * below + rng.normal(0, 0.02, 5)).tolist(), below.tolist())
        hits += math.isnan(found.mean) or found.low <= 0.7 <= found.high
    assert 0.935 < hits / 2000 < 0.965


def test_recovery_is_undefined_where_dense_masks_are_not_significantly_better(tmp_path, capsys):
    write_worth(tmp_path, {"dense": [0.4, 0.8, 0.5], "sft": [0.6, 0.63, 0.62]})
    assert collect([str(tmp_path), "--dense", "dense"]) == 0
    assert capsys.readouterr().out.count("| undefined |") == 2


def test_rows_are_compared_with_the_one_that_has_the_same_other_options(tmp_path):
    for budget in (4, 8):
        for variant, seed in (("dense", 0), ("dense", 1), ("sft", 0), ("sft", 1)):
            policy = 0.6 + budget / 100 + (0.1 if variant == "dense" else 0) + seed / 100
            words = [f"experiment/variant={variant}", f"seed={seed}", f"budget={budget}"]
            write_run(tmp_path / f"{variant}{budget}{seed}", words, policy)
    sweep = read_sweep(tmp_path, against="dense")
    (column,) = sweep.comparisons
    assert column.title == "− dense"
    pairs = zip(sweep.groups, column.intervals, strict=True)
    found = {group.name: round(interval.mean, 6) for group, interval in pairs}
    assert found == {
        "dense budget=4": 0,
        "dense budget=8": 0,
        "sft budget=4": pytest.approx(-0.1),
        "sft budget=8": pytest.approx(-0.1),
    }


def test_rows_that_are_significant_after_holms_correction_are_named(tmp_path, capsys):
    rng = np.random.default_rng(93)
    base, policies = rng.normal(0.6, 0.05, 5), {}
    for name, shift in {"a": 0.02, "b": -0.02, "c": 0.008, "d": 0.0}.items():
        policies[name] = base + shift + rng.normal(0, 0.006, 5)
    write_worth(tmp_path, {"sft": base.tolist()} | {name: values.tolist() for name, values in policies.items()})
    assert collect([str(tmp_path), "--against", "sft"]) == 0
    note = capsys.readouterr().out.splitlines()[-1]
    p = {name: stats.ttest_rel(values, base).pvalue for name, values in policies.items()}
    assert p["c"] < 0.05 < min(2 * p["c"], p["d"])  # significant alone, not among four
    a, b = sorted("ab", key=p.get)  # the smallest of four p-values, then the next
    corrected = {a: 4 * p[a], b: max(4 * p[a], 3 * p[b])}
    assert note == (
        f"− sft, corrected for 4 rows (Holm): above 0: `a` (p {corrected['a']:.3f}); "
        f"below 0: `b` (p {corrected['b']:.3f})."
    )


def test_a_row_of_one_run_is_not_tested_and_not_counted(tmp_path, capsys):
    write_worth(tmp_path, {"sft": [0.5], "hinge": [0.7]})
    assert collect([str(tmp_path), "--against", "sft"]) == 0
    note = capsys.readouterr().out.splitlines()[-1]
    assert all(fact in note for fact in ("0 rows (Holm)", "above 0: none", "below 0: none"))


def test_a_row_that_is_not_there_is_named(sweep, capsys):
    assert main(["collect", str(sweep), "--against", "sft"]) == 1
    message = capsys.readouterr().err
    assert "'sft'" in message
    assert "hinge, dpo" in message


def test_the_overrides_of_the_summary_come_first(tmp_path):
    write_run(tmp_path / "0", ["loss=dpo", "seed=0"], 0.6)
    summary = json.loads((tmp_path / "0/summary.json").read_text())
    (tmp_path / "0/summary.json").write_text(json.dumps({**summary, "overrides": ["loss=sft", "+seed=4"]}))
    assert dict(read_run(tmp_path / "0").options) == {"loss": "sft", "seed": "4"}


def test_an_infinite_value_counts_in_no_mean_and_n_is_shown(tmp_path, capsys):
    write_run(tmp_path / "0", ["loss=dpo", "seed=0"], 0.6, gain=0.25)
    write_run(tmp_path / "1", ["loss=dpo", "seed=1"], 0.8, gain=-math.inf)
    assert collect([str(tmp_path)]) == 0
    row = capsys.readouterr().out.splitlines()[2]
    assert row.startswith("| `all runs` | 0.500 ± 0.000 | 0.700 ± 1.271 | +0.200 ± 1.271 | +0.250 (n 1) | ")
    assert row.endswith(" | 2 |")


def test_a_comparison_over_fewer_seeds_than_the_row_has_shows_n(tmp_path, capsys):
    write_worth(tmp_path, {"sft": [0.6, 0.62], "dpo": [0.7, 0.74, 0.9]})
    assert collect([str(tmp_path), "--against", "sft"]) == 0
    lines = capsys.readouterr().out.splitlines()
    # .1 and .12 on the seeds that both have: half width 12.706 · .01.
    assert next(line for line in lines if line.startswith("| `dpo`")).endswith("| 3 | 700 | +0.110 ± 0.127 (n 2) |")


def test_a_rows_name_in_brackets_is_no_markup(tmp_path):
    for name in ("[dpo]", "[sft]"):
        write_run(tmp_path / name, [f"loss={name}", "seed=0"], 0.6)
    console = Console(file=io.StringIO(), width=160)
    console.print(read_sweep(tmp_path).terminal())
    assert "[dpo]" in console.file.getvalue()
    assert "[sft]" in console.file.getvalue()


def test_what_diverged_stays_short():
    assert plus_minus(Interval(-3.9e10, -9.1e10, 1.3e10, 5), sign=True) == "-3.9e+10 ± 5.2e+10"
    assert plus_minus(Interval(-0.6414, -0.6454, -0.6374, 5), sign=True) == "-0.641 ± 0.004"
