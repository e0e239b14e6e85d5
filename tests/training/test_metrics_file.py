"""metrics.csv: one row per logged step, intact after an interruption, continued by a resumed run."""

import csv
import errno

import pytest

from segdpo.reports import read_series
from segdpo.training import MetricsFile


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def log_run(folder, steps):
    """Log as a run of five steps an epoch does: the loss each step, the IoU at the end of each epoch."""
    logger = MetricsFile(folder)
    for step in steps:
        logger.log_metrics({"train/loss": 1 / (1 + step), "epoch": step // 5}, step)
        if step % 5 == 4:
            logger.log_metrics({"val/iou": step / 100, "epoch": step // 5}, step)


def test_columns_come_as_they_are_logged_and_nothing_is_lost(tmp_path):
    log_run(tmp_path, range(6))
    found = rows(tmp_path / "metrics.csv")
    assert list(found[0]) == ["epoch", "step", "train/loss", "val/iou"]
    assert [row["step"] for row in found] == ["0", "1", "2", "3", "4", "4", "5"]
    assert [row["val/iou"] for row in found] == ["", "", "", "", "", "0.04", ""]
    series = read_series(tmp_path / "metrics.csv")
    assert series["train/loss"] == ([0, 1, 2, 3, 4, 5], [1, 1 / 2, 1 / 3, 1 / 4, 1 / 5, 1 / 6])


@pytest.mark.parametrize("resumed_at", [3, 4, 5, 8])
def test_a_resumed_run_leaves_what_an_uninterrupted_one_does(tmp_path, resumed_at):
    log_run(tmp_path / "whole", range(12))
    log_run(tmp_path / "stopped", range(9))
    log_run(tmp_path / "stopped", range(resumed_at, 12))
    assert rows(tmp_path / "stopped" / "metrics.csv") == rows(tmp_path / "whole" / "metrics.csv")


def test_a_run_resumed_between_the_rows_of_one_step_keeps_the_first(tmp_path):
    log_run(tmp_path, range(5))
    before = rows(tmp_path / "metrics.csv")
    MetricsFile(tmp_path).log_metrics({"val/iou": 0.04, "epoch": 0}, 4)
    assert rows(tmp_path / "metrics.csv") == before


def test_a_new_run_in_an_old_folder_replaces_its_rows(tmp_path):
    log_run(tmp_path, range(7))
    MetricsFile(tmp_path).log_metrics({"train/loss": 3.0, "epoch": 0}, 0)
    assert rows(tmp_path / "metrics.csv") == [{"epoch": "0", "step": "0", "train/loss": "3.0"}]


def test_half_a_row_of_a_killed_process_is_dropped(tmp_path):
    log_run(tmp_path, range(3))
    path = tmp_path / "metrics.csv"
    path.write_bytes(path.read_bytes() + b"0,3,0.2")
    log_run(tmp_path, range(4, 5))
    assert [row["step"] for row in rows(path)] == ["0", "1", "2", "4", "4"]


def test_a_full_disk_is_an_error_with_the_files_name(tmp_path, monkeypatch):
    logger = MetricsFile(tmp_path)
    logger.log_metrics({"train/loss": 1.0}, 0)

    def full(*arguments, **keywords):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("pathlib.Path.open", full)
    with pytest.raises(OSError, match=r"metrics\.csv but No space left on device"):
        logger.log_metrics({"train/loss": 1.0}, 1)
