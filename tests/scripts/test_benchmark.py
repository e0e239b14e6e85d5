"""The benchmark runs at test sizes; its table and its JSON say what its samples say; nothing unequal is compared."""

import json
import sys
from dataclasses import replace
from statistics import median

import benchmark
import pytest
import rich
import torch
from bench import cases, lightning_step, memory, peers, rounds, training
from bench.row import Row, Target, at_least, at_most
from bench.scale import choose_scale

SCALE = choose_scale("cpu", quick=True, rounds=9)


@pytest.fixture
def run(tmp_path, capsys):
    """Run the command at test sizes; return what it printed and the JSON that it wrote."""

    def run(*words):
        path = tmp_path / "found.json"
        code = benchmark.main(["--quick", "--json", str(path), *words])
        return code, capsys.readouterr().out, json.loads(path.read_text())

    return run


@pytest.mark.untraced
def test_steps_and_losses_are_measured_and_written_with_every_sample(run, tmp_path):
    code, printed, found = run("--only", "S,L")
    rows = found["rows"]
    assert code == 0, [row["failed"] for row in rows if row["failed"]]
    assert {row["id"] for row in rows} == {"S1", "S2", "S3", "S4", "S5", "S6", "L1", "L2", "L3", "L4", "L5", "L6"}
    for row in rows:
        assert row["id"] in printed
        first, *second = (row["sides"][name] for name in row["ratio"]["of"])
        ratios = [a / b for a, b in zip(first, second[0], strict=True)] if second else first
        assert row["ratio"]["samples"] == ratios
        assert all(value >= 0 for samples in row["sides"].values() for value in samples)
        sign, limit = row["target"].split()
        assert row["met"] == (median(ratios) <= float(limit) if sign == "≤" else median(ratios) >= float(limit))
    table = (tmp_path / "found.md").read_text().splitlines()
    assert [line.split(" | ")[0] for line in table[2:]] == [f"| {row['id']}" for row in rows]
    timed = [row for row in rows if row["unit"] == "ms"]
    assert all(len(samples) == 2 for row in timed for samples in row["sides"].values())
    assert found["machine"]["torch"] == torch.__version__
    assert found["machine"]["threads"] == 1
    assert list(found["seconds"]) == ["loss_speed", "loss_memory", "loss_masks", "loss_error", "steps", "steps_memory"]


def test_a_part_that_fails_is_a_row_and_the_rest_goes_on(run, monkeypatch):
    def broken(scale, folder):
        yield Row("L1", "fine", "ms", {"ours": [1.0], "fair baseline": [2.0]})
        raise RuntimeError("no such kernel")

    monkeypatch.setattr("bench.loss_speed.rows", broken)
    code, printed, found = run("--only", "L1,L2,L3,L6")
    assert code == 1
    assert [(row["id"], row["failed"]) for row in found["rows"]] == [
        ("L1", None),
        ("L2", "RuntimeError: no such kernel"),
        ("L3", "RuntimeError: no such kernel"),
        ("L6", None),
    ]
    assert "RuntimeError: no such kernel" in " ".join(printed.split())


@pytest.mark.parametrize(
    ("only", "parts"),
    [
        (None, list(benchmark.PARTS)),
        (["S"], ["steps", "steps_memory"]),
        (["S6"], ["steps_memory"]),
        (["loss"], ["loss_speed", "loss_memory", "loss_masks", "loss_error"]),
        (["data", "G1"], ["data_store", "data_loader", "growth"]),
        (["nothing"], []),
    ],
)
def test_parts_are_chosen_by_id_and_by_name(only, parts):
    assert benchmark.chosen_parts(only) == parts


def test_an_unknown_part_is_refused_with_the_names_of_all(capsys):
    with pytest.raises(SystemExit):
        benchmark.main(["--only", "nothing"])
    assert "loss_memory" in capsys.readouterr().err


def test_a_row_says_medians_the_ratio_of_each_round_and_whether_the_target_is_met():
    sides = {"fair baseline": [1.0, 3.0, 2.0], "ours": [2.0, 9.0, 4.0]}
    row = Row("S1", "step", "ms", sides, target=at_most(2.5))
    # Ratios 2, 3, 2.
    assert row.cells() == ("S1", "step", "", "2 ms", "", "4 ms", "2 (2–3)", "≤ 2.5", "met")
    assert Row("S1", "step", "ms", sides, target=at_least(2.5)).cells()[-1] == "not met"
    assert Row("L6", "error", "nats", {"ours": [0.5]}, ("ours",)).cells()[-3:] == ("0.5", "", "")
    assert Row("L5", "none", failed="why", target=at_most(1)).met is False
    assert Row("S2", "step", "ms", {"fair baseline": [1.0], "ours": [1160.4]}).cells()[5:7] == ("1160 ms", "1160")
    assert str(Target(2, at_least=True)) == "≥ 2"


def test_two_files_are_compared_by_the_rows_that_both_have(tmp_path, capsys):
    before = [Row("S1", "a step", sides={"ours": [2, 3, 4], "fair baseline": [2, 2, 2]}, target=at_most(2))]
    after = [replace(before[0], sides={"ours": [2, 2, 2], "fair baseline": [4, 2, 8]}), Row("L9", "new", over=())]
    for name, rows in (("a", before), ("b", after)):
        (tmp_path / f"{name}.json").write_text(json.dumps({"rows": [row.as_json() for row in rows]}))
    assert benchmark.main(["--compare", str(tmp_path / "a.json"), str(tmp_path / "b.json")]) == 0
    *_, line = capsys.readouterr().out.splitlines()
    assert line == "| S1 | a step | 1.5 (1–2) | 0.5 (0.25–1) | ≤ 2 |"


def test_a_ratio_of_what_was_not_measured_is_refused():
    with pytest.raises(ValueError, match=r"Expected sides among .* but got \('ours',\)"):
        Row("S1", "step", "ms", {"ours": [1.0]})


def test_a_peer_that_is_not_installed_is_said_and_is_no_failure(monkeypatch):
    monkeypatch.setitem(sys.modules, "trl", None)
    row = peers.trl_row(SCALE)
    assert row.cells()[2:] == ("", "", "", "", "not measured", "", "")
    assert not row.failed
    assert "not installed" in row.note


def test_sides_take_turns_in_going_first():
    called = []
    sides = {"a": lambda: called.append("a"), "b": lambda: called.append("b")}
    found = rounds.rounds_of(sides, SCALE, "x", shortest=0)
    # Each once beforehand, to warm up.
    assert "".join(called) == "ab" + "ab" + "ba"
    assert [len(samples) for samples in found.values()] == [2, 2]


def test_peaks_are_exact():
    device = torch.device("cpu")
    data = torch.zeros(2**20)
    assert memory.peak_bytes(lambda: data + data, device) == 4 * 2**20

    def two_at_once():
        first = data + data
        second = first + data
        del first
        return second + data

    assert memory.peak_bytes(two_at_once, device) == 8 * 2**20
    layer = torch.nn.Linear(4, 2)
    assert memory.held_bytes([layer, layer, data, data[:5]]) == 4 * (8 + 2) + 4 * 2**20


def test_a_tenth_of_the_pixels_differs():
    case = cases.make_case(2, 5, 64, torch.device("cpu"))
    assert (case.chosen != case.rejected).float().mean((1, 2)).tolist() == pytest.approx([0.1, 0.1], abs=1e-3)
    assert case.chosen.unique().tolist() == [0, 1, 2, 3, 4]


@pytest.mark.untraced
def test_the_step_is_measured_and_its_weights_are_those_of_the_bare_loop(tmp_path, monkeypatch):
    compared = []

    def spy(ours, theirs):
        compared.append(len(ours))
        assert_equal(ours, theirs)

    assert_equal = lightning_step.assert_equal
    monkeypatch.setattr(lightning_step, "assert_equal", spy)
    console = dict(rich.get_console().__dict__)
    start = training.make_start(tmp_path / "run", replace(SCALE, rounds=1), 10, "data.size=32", "data.count=60")
    found = lightning_step.rounds_of_loops(start, "steps")
    assert rich.get_console().__dict__ == console
    assert [len(found[loop]) for loop in (training.fit, training.loop)] == [1, 1]
    assert len(compared) == 1
    assert compared[0] > 100
    # Ten steps are logged once, so what is measured did log.
    assert "train/pairs/chosen_gain" in (tmp_path / "run" / "metrics.csv").read_text()


def test_one_bit_of_difference_stops_the_benchmark():
    weights = {"a": torch.ones(3), "b": torch.zeros(2)}
    lightning_step.assert_equal(weights, {name: weight.clone() for name, weight in weights.items()})
    other = weights | {"a": torch.tensor([1.0, 1.0, 1.0 + 2**-23])}
    with pytest.raises(AssertionError):
        lightning_step.assert_equal(weights, other)
    with pytest.raises(AssertionError):
        lightning_step.assert_equal(weights, {"a": weights["a"]})


def test_another_gradient_stops_the_benchmark():
    logits = torch.ones(1, 2, 4, 4).requires_grad_()
    cases.assert_same(logits, lambda: logits.sum(), lambda: logits.sum())
    # Equal values, other gradients.
    with pytest.raises(AssertionError):
        cases.assert_same(logits, lambda: logits.sum(), lambda: logits.square().sum())
