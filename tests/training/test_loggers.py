"""Every yaml of conf/logger/ writes where it says, without a network."""

import sqlite3
import time

import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

from segdpo.reports import read_series

METRICS = [{"train/loss": 0.5, "epoch": 0}, {"train/loss": 0.25, "epoch": 0}]


@pytest.fixture
def build(tmp_path, request):
    conf = request.config.rootpath / "conf"

    def loggers(name):
        with initialize_config_dir(str(conf), version_base="1.3"):
            config = compose(None, overrides=[f"+logger={name}", f"+run_folder={tmp_path}"])
        return {key: instantiate(node) for key, node in config.logger.items()}

    return loggers


def log(loggers):
    for logger in loggers.values():
        for step, metrics in enumerate(METRICS):
            logger.log_metrics(metrics, step)
        logger.save()
        logger.finalize("success")


def test_csv_is_in_the_run_folder(build, tmp_path):
    log(build("csv"))
    assert read_series(tmp_path / "metrics.csv")["train/loss"] == ([0, 1], [0.5, 0.25])


def test_default_needs_no_further_package(build):
    assert list(build("default")) == ["csv"]


def test_tensorboard(build, tmp_path):
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    log(build("tensorboard"))
    events = event_accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("train/loss")] == [(0, 0.5), (1, 0.25)]


def test_none_is_none(build):
    assert build("none") == {}


def test_wandb_offline(build, tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_SILENT", "true")
    loggers = build("wandb")
    log(loggers)
    loggers["wandb"].experiment.finish()
    (run,) = (tmp_path / "wandb").glob("offline-run-*")
    (stored,) = run.glob("run-*.wandb")
    # Written by a process of W&B's own, which may take its time.
    deadline = time.monotonic() + 30
    while b"train/loss" not in stored.read_bytes():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_mlflow_in_a_file(build, tmp_path, monkeypatch):
    pytest.importorskip("mlflow")
    pytest.importorskip("sqlalchemy")
    monkeypatch.chdir(tmp_path)
    log(build("mlflow"))
    with sqlite3.connect(tmp_path / "mlflow.db") as stored:
        found = stored.execute("select step, value from metrics where key = 'train/loss' order by step").fetchall()
    assert found == [(0, 0.5), (1, 0.25)]
