"""Curves hold the numbers of the file."""

import csv

import numpy as np
import pytest

from segdpo.reports import draw_curves, read_series
from segdpo.reports.curves import curves_figure, prepare_panels
from segdpo.reports.html.figures import run_curves

STEPS = 10


@pytest.fixture
def metrics_csv(tmp_path):
    path = tmp_path / "metrics.csv"
    keys = ["policy_chosen", "reference_chosen", "policy_rejected", "reference_rejected"]
    with path.open("w") as file:
        names = ["epoch", "step", "train/loss", "train/pairs/chosen_gain", "train/pairs/margin", "val/iou"]
        writer = csv.DictWriter(file, [*names, *(f"train/score/{key}" for key in keys)])
        writer.writeheader()
        for step in range(STEPS):
            scores = {f"train/score/{key}": -step - 0.1 * number for number, key in enumerate(keys)}
            gain = {"train/pairs/chosen_gain": -0.2 * step, "train/pairs/margin": 0.3 * step}
            writer.writerow({"epoch": 0, "step": step, "train/loss": 0.7, **scores, **gain})
        writer.writerow({"epoch": 0, "step": STEPS - 1, "val/iou": 0.61})
    return path


def titled(figure, words):
    (found,) = [axes for axes in figure.axes if words in axes.get_title()]
    return found


def lines(axes):
    return {line.get_label(): line for line in axes.lines}


def test_each_panel_holds_its_numbers(metrics_csv):
    figure = curves_figure(metrics_csv, reference_iou=0.55)
    steps = np.arange(STEPS)
    chosen = lines(titled(figure, "chosen masks"))
    assert np.allclose(chosen["policy"].get_ydata(), -steps)
    assert np.allclose(chosen["reference"].get_ydata(), -steps - 0.1)
    assert chosen["reference"].get_linestyle() == "--"
    assert np.allclose(lines(titled(figure, "rejected masks"))["policy"].get_ydata(), -steps - 0.2)
    gain = titled(figure, "Chosen gain")
    assert np.allclose(gain.lines[0].get_ydata(), -0.2 * steps)
    assert [text.get_text().strip() for text in gain.texts] == ["below 0: displacement"]
    assert np.allclose(titled(figure, "margin gained").lines[0].get_ydata(), 0.3 * steps)
    overlap = lines(titled(figure, "IoU"))
    assert list(overlap["policy"].get_xdata()) == [STEPS - 1]
    assert list(overlap["policy"].get_ydata()) == [0.61]
    assert list(overlap["reference 0.550"].get_ydata()) == [0.55, 0.55]


def test_long_runs_are_smoothed_to_the_mean_of_a_window(tmp_path):
    values = np.random.default_rng(0).random(100)
    rows = [f"{step},{value}" for step, value in enumerate(values)]
    (tmp_path / "metrics.csv").write_text("\n".join(["step,train/loss", *rows, ""]))
    thin, thick = titled(curves_figure(tmp_path / "metrics.csv"), "Loss").lines
    assert np.allclose(thin.get_ydata(), values)
    # A twentieth of 100 steps: five, two on each side.
    assert thick.get_ydata()[50] == pytest.approx(values[48:53].mean())
    assert thick.get_ydata()[0] == pytest.approx(values[:3].mean())


def test_a_supervised_run_has_no_panels_of_pairs(tmp_path):
    (tmp_path / "metrics.csv").write_text("step,train/loss_step,val/iou\n0,0.5,\n1,nan,\n1,,0.4\n")
    series = read_series(tmp_path / "metrics.csv")
    assert series["val/iou"] == ([1.0], [0.4])
    figure = curves_figure(tmp_path / "metrics.csv")
    assert [axes.get_title() for axes in figure.axes if axes.axison] == ["IoU with gold, validation", "Loss"]


def test_the_file_is_written_and_an_empty_one_is_an_error(tmp_path, metrics_csv):
    draw_curves(metrics_csv, tmp_path / "new" / "curves.png", title="a run")
    assert (tmp_path / "new" / "curves.png").read_bytes().startswith(b"\x89PNG")
    (tmp_path / "empty.csv").write_text("step,train/loss\n")
    with pytest.raises(ValueError, match="Expected metrics over steps"):
        draw_curves(tmp_path / "empty.csv", tmp_path / "curves.png")


def test_png_and_html_draw_the_same_panels(metrics_csv):
    series = read_series(metrics_csv)
    titles = [panel.title for panel in prepare_panels(series, 0.55)]
    assert [figure.title for figure in run_curves(series, 0.55)] == titles
    drawn = [axes.get_title() for axes in curves_figure(metrics_csv, reference_iou=0.55).axes if axes.axison]
    assert sorted(drawn) == sorted(titles)


def test_a_run_that_diverged_is_drawn_up_to_there(tmp_path):
    rows = [f"{step},{'nan' if step > 29 else 0.5}" for step in range(40)]
    (tmp_path / "metrics.csv").write_text("\n".join(["step,train/loss", *rows, ""]))
    (panel,) = prepare_panels(read_series(tmp_path / "metrics.csv"))
    assert panel.broken == 30
    thick = titled(curves_figure(tmp_path / "metrics.csv"), "Loss").lines[-1].get_ydata()
    assert np.flatnonzero(np.isfinite(thick)).tolist() == list(range(30))
