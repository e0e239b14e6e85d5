"""The frontier: run folders written by hand, and what is missing in them."""

import csv
import json
import math

import numpy as np
import pytest
import yaml
from PIL import Image as Pillow
from scipy import stats

from segdpo.cli import collect, main
from segdpo.reports import read_frontier


def write(folder, method, value, seed, *, reward=0.7, kl=100.0, judge="iou()", start=0.5, knob="beta", **more):
    """A run of one method and strength; `method` None: an unfinished one."""
    (folder / ".hydra").mkdir(parents=True)
    words = [f"experiment/variant=frontier_{method}", f"strength={value}", f"seed={seed}"]
    (folder / ".hydra/overrides.yaml").write_text(yaml.safe_dump(words))
    if method is None:
        return
    frontier = {
        "reward": {"mean": reward, "n": 9},
        "reward_sampled": {"mean": reward - 0.1, "n": 9},
        "kl": {"mean": kl, "n": 9},
        "kl_per_pixel": {"mean": kl / 1000, "n": 9},
        "seconds": 10.0 + seed,
        "peak_memory": 500.0,
        "judge": judge,
        "reference": {"reward": {"mean": start, "n": 9}, "reward_sampled": {"mean": start - 0.1, "n": 9}},
        **({"point": {"method": method, "knob": knob, "value": value}} if knob else {}),
        **more,
    }
    iou = {name: {"iou": {"mean": mean}} for name, mean in (("policy", reward), ("reference", start))}
    (folder / "summary.json").write_text(json.dumps({"seed": seed, "overrides": words, "frontier": frontier, **iou}))


@pytest.fixture
def sweep(tmp_path):
    """dpo at two betas and two seeds, one of them missing; best of 4; an unfinished run."""
    folder = tmp_path / "sweep"
    for number, (value, seed, reward, kl) in enumerate(
        [(10.0, 1, 0.6, 40.0), (10.0, 2, 0.8, 60.0), (3.0, 1, 0.7, 90.0)]
    ):
        write(folder / f"d{number}", "dpo", value, seed, reward=reward, kl=kl, start=0.4 + seed / 10)
    for seed in (1, 2):
        write(folder / f"b{seed}", "best_of", 4, seed, kl=0.64, knob="K", start=0.4 + seed / 10)
    write(folder / "dead", None, 3.0, 2)
    return folder


def test_rows_means_and_what_is_missing(sweep, capsys):
    assert collect(["--frontier", str(sweep)]) == 0
    lines = capsys.readouterr().out.splitlines()
    # t(.975, 1) = 12.706; of two values d apart the half width is 12.706 · d/2.
    assert lines == [
        "| method | reward | sampled | KL | KL a pixel | IoU | seconds | MiB | n |",
        "|---|---|---|---|---|---|---|---|---|",
        "| `reference` | 0.550 ± 0.635 | 0.450 ± 0.635 | 0.0 ± 0.0 | 0.000 ± 0.000 | 0.550 ± 0.635 | – | – | 2 |",
        "| `best_of K=4` | 0.700 ± 0.000 | 0.600 ± 0.000 | 0.6 ± 0.0 | 0.001 ± 0.000 | 0.700 ± 0.000 | 11.5 ± 6.4 "
        "| 500 ± 0 | 2 |",
        "| `dpo beta=3` | 0.700 | 0.600 | 90.0 | 0.090 | 0.700 | 11.0 | 500 | 1 |",
        "| `dpo beta=10` | 0.700 ± 1.271 | 0.600 ± 1.271 | 50.0 ± 127.1 | 0.050 ± 0.127 | 0.700 ± 1.271 | 11.5 ± 6.4 "
        "| 500 ± 0 | 2 |",
        "",
        "Rewards by iou(); mean over n seeds ± half of Student's 95 % interval.",
        "",
        f"1 unfinished: {sweep}/dead",
        "",
        "dpo beta=3: no seed 2",
    ]
    assert (sweep / "frontier.md").read_text().splitlines() == lines
    assert Pillow.open(sweep / "frontier.png").size[0] == 1200


def test_the_csv_has_rows_and_seeds(sweep, tmp_path):
    assert collect(["--frontier", str(sweep), "--out", str(tmp_path / "out")]) == 0
    rows = list(csv.DictReader((tmp_path / "out/frontier.csv").open()))
    assert [row["seed"] for row in rows if row["strength"] == "beta=10"] == ["all", "1", "2"]
    low, high = stats.t.interval(0.95, 1, loc=50, scale=stats.sem([40, 60]))
    found = [float(rows[-3][f"KL {bound}"]) for bound in ("mean", "low", "high", "n")]
    np.testing.assert_allclose(found, [50, low, high, 2])
    assert float(rows[-1]["reward mean"]) == 0.8


def test_the_picture_has_a_line_a_method_and_is_the_same_every_time(sweep):
    frontier = read_frontier(sweep)
    drawn = frontier.picture("svg")
    assert drawn == frontier.picture("svg")
    text = drawn.decode()
    assert all(f"<!-- {name} -->" in text for name in ("reference", "best_of", "dpo"))
    dpo = [row for row in frontier.rows if row.name == "dpo beta=10"]
    assert dpo[0].drawable("sampled") == [(40, 0.5), (60, pytest.approx(0.7))]


def test_numbers_that_are_none_are_named_and_not_drawn(sweep):
    write(sweep / "nan", "dpo", 3.0, 2, reward=math.nan, start=0.6)
    write(sweep / "text", "dpo", 10.0, 3, kl_per_pixel={"mean": None}, reward_sampled={"mean": "half"}, start=0.7)
    write(sweep / "still", "dpo", 30.0, 1, kl=0.0)
    frontier = read_frontier(sweep)
    assert "dpo beta=3: reward or KL is not a number for seed 2" in frontier.notes()
    rows = {row.name: row for row in frontier.rows}
    assert rows["dpo beta=3"].interval("reward").n == 1
    assert [rows["dpo beta=10"].interval(name).n for name in ("reward", "sampled", "KL a pixel")] == [3, 2, 2]
    assert len(rows["dpo beta=3"].drawable("reward")) == 1
    # A logarithmic axis has no 0.
    assert rows["dpo beta=30"].drawable("reward") == []
    assert len(frontier.picture("png")) > 1000


def test_a_run_of_best_of_alone_gives_every_size(tmp_path):
    points = [
        {"k": k, "reward": {"mean": 0.5 + k / 100}, "reward_sampled": {"mean": 0.5}, "kl": {"mean": k / 10}}
        for k in (1, 2, 4)
    ]
    write(tmp_path / "0", "best_of", 4, 1, knob=None, points=points)
    frontier = read_frontier(tmp_path)
    assert [row.name for row in frontier.rows] == ["reference", *(f"frontier_best_of K={k}" for k in (1, 2, 4))]
    assert frontier.rows[2].interval("reward").mean == 0.52


def test_other_runs_are_named_by_what_was_typed(tmp_path):
    for number, loss in enumerate(("dpo", "sft", "sft")):
        write(tmp_path / str(number), "any", 0, 1, knob=None)
        summary = json.loads((tmp_path / f"{number}/summary.json").read_text())
        summary["overrides"] = [f"loss={loss}", f"beta={number}", "threads=1"]
        (tmp_path / f"{number}/summary.json").write_text(json.dumps(summary))
    assert [row.name for row in read_frontier(tmp_path).rows] == ["reference", "dpo beta=0", "sft beta=1", "sft beta=2"]


def test_runs_of_different_judges_and_references_are_named(sweep, capsys):
    write(sweep / "other", "dpo", 30.0, 1, start=0.51)
    notes = read_frontier(sweep).notes()
    assert any("seed 1" in note and "different references" in note for note in notes)
    assert set(notes) <= set(read_frontier(sweep).markdown().splitlines())
    write(sweep / "dice", "dpo", 30.0, 2, judge="dice()")
    assert main(["collect", "--frontier", str(sweep)]) == 1
    assert f"dice() in {sweep}/dice" in capsys.readouterr().err


def test_a_folder_without_a_frontier_is_named(tmp_path, capsys):
    write(tmp_path / "0", None, 1.0, 1)
    assert main(["collect", "--frontier", str(tmp_path)]) == 1
    assert "1 runs, 1 of them unfinished" in capsys.readouterr().err


def test_runs_that_have_no_frontier_are_counted(sweep):
    write(sweep / "old", "sft", 60, 1)
    summary = json.loads((sweep / "old/summary.json").read_text())
    del summary["frontier"]
    (sweep / "old/summary.json").write_text(json.dumps(summary))
    assert f"1 without a frontier: {sweep}/old" in read_frontier(sweep).notes()
