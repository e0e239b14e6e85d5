"""The benchmark of the step runs, at a size for tests; how figures are said; unequal weights stop it."""

import sys
from pathlib import Path

import pytest
import rich
import torch

sys.path.append(str(Path(__file__).parents[2] / "scripts"))

from bench import step as bench_step
from bench.figures import Figure


def test_a_figure_says_median_lowest_and_highest_and_the_median_of_the_ratios():
    figure = Figure("step", "ms", "bare", values=[2.0, 9.0, 4.0], baseline=[1.0, 3.0, 2.0])
    # Ratios 2, 3, 2.
    assert figure.row() == ("step (ms)", "4 (2–9)", "bare", "2 (1–3)", "2 (2–3)")
    assert Figure("mask", "KiB", "PNG", [3.0], [4.0]).row() == ("mask (KiB)", "3", "PNG", "4", "0.75")


def test_the_step_is_measured_and_its_weights_are_those_of_the_bare_loop(tmp_path, monkeypatch):
    monkeypatch.setattr(bench_step, "SIZES", (32,))
    compared = []

    def spy(ours, theirs):
        compared.append(len(ours))
        assert_equal(ours, theirs)

    assert_equal = bench_step.assert_equal
    monkeypatch.setattr(bench_step, "assert_equal", spy)
    console = dict(rich.get_console().__dict__)
    figures = bench_step.step(tmp_path, steps=10, rounds=1)
    assert rich.get_console().__dict__ == console
    assert [figure.name for figure in figures] == [
        "a step at 32² in Lightning",
        "a bare step at 32²",
        "what Lightning adds to a step",
    ]
    assert all(len(figure.values) == len(figure.baseline) == 1 for figure in figures)
    # The U-Net, then one convolution (weight and bias).
    assert compared[0] > 100
    assert compared[1:] == [2]
    # Ten steps are logged once, so what is measured did log.
    assert "train/pairs/chosen_gain" in (tmp_path / "step32" / "metrics.csv").read_text()


def test_one_bit_of_difference_stops_the_benchmark():
    weights = {"a": torch.ones(3), "b": torch.zeros(2)}
    bench_step.assert_equal(weights, {name: weight.clone() for name, weight in weights.items()})
    other = weights | {"a": torch.tensor([1.0, 1.0, 1.0 + 2**-23])}
    with pytest.raises(AssertionError):
        bench_step.assert_equal(weights, other)
    with pytest.raises(AssertionError):
        bench_step.assert_equal(weights, {"a": weights["a"]})
