"""The wheel: built, installed where no checkout is on the path, and used from an empty folder."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[1]
PACKAGED = (".py", ".yaml", ".html", ".css", ".typed")
# What a user's own folder adds: a data set that builds on one of ours.
CELLS = "defaults: [shapes]\ncount: 24\nsize: 32\n"
SHORT = [
    *("--config-dir", "own", "data=cells", "hydra.run.dir=run", "trainer.max_steps=2", "reference_training.steps=2"),
    *("trainer=ddp", "trainer.devices=2", "trainer.accelerator=cpu", "datamodule.batch_size=2", "threads=1"),
    *("callbacks=none", "logger=none", "keep=always"),
]
# A program of the user's, with a configuration of its own that takes choices from ours.
PROGRAM = """
import hydra, segdpo
with hydra.initialize_config_dir({folder!r}, version_base="1.3"):
    config = hydra.compose("program", overrides=["hydra.searchpath=[pkg://segdpo.conf]", "+model=unet"])
print(segdpo.__file__, config.model._target_)
"""
pytestmark = pytest.mark.untraced


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Return the wheel, built from a copy, since building leaves folders behind."""
    source = tmp_path_factory.mktemp("source")
    for name in ("segdpo", "conf"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip("wheel", "--no-build-isolation", "--wheel-dir", source / "dist", source)
    (found,) = (source / "dist").glob("segdpo-*.whl")
    return found


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """Return the folder that the wheel is installed in."""
    folder = tmp_path_factory.mktemp("installed")
    pip("install", "--target", folder, wheel)
    return folder


def pip(command, *words):
    options = ("--quiet", "--no-deps", "--no-index", "--disable-pip-version-check")
    subprocess.run([sys.executable, "-m", "pip", command, *options, *map(str, words)], check=True)


def run(installed, folder, *words):
    """Run Python in a folder, with the wheel in the place of the checkout, and return what it printed."""
    environment = os.environ | {"PYTHONPATH": str(installed), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *map(str, words)], cwd=folder, env=environment, capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


def test_the_wheel_has_every_file_and_no_other(wheel):
    expected = {
        f"{shown}/{path.relative_to(ROOT / name).as_posix()}"
        for name, shown in (("segdpo", "segdpo"), ("conf", "segdpo/conf"))
        for path in (ROOT / name).rglob("*")
        if path.suffix in PACKAGED or path.name == "py.typed"
    }
    with ZipFile(wheel) as archive:
        found = set(archive.namelist())
    assert {name for name in found if ".dist-info/" not in name} == expected


def test_the_configuration_is_a_package(installed, tmp_path):
    (tmp_path / "program.yaml").write_text("{}\n")
    said = run(installed, tmp_path, "-c", PROGRAM.format(folder=str(tmp_path))).split()
    assert said == [str(installed / "segdpo/__init__.py"), "segdpo.models.smp_model"]


def test_train_predict_and_report_in_an_empty_folder(installed, tmp_path):
    segdpo = installed / "bin" / "segdpo"
    (tmp_path / "own/data").mkdir(parents=True)
    (tmp_path / "own/data/cells.yaml").write_text(CELLS)
    said = run(installed, tmp_path, segdpo, "train", *SHORT)
    assert "IoU" in said
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert summary["data"] == "cells"
    assert (tmp_path / ".cache/segdpo/references").is_dir()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 50, 3), np.uint8)).save(tmp_path / "photo.png")
    run(installed, tmp_path, segdpo, "predict", "run", "photo.png", "--out", "predicted")
    assert Image.open(tmp_path / "predicted/masks/photo.png").size == (50, 40)
    run(installed, tmp_path, segdpo, "report", "run")
    page = (tmp_path / "run/report.html").read_text()
    assert "segdpo train data=cells " in page
    assert f"--config-dir {tmp_path / 'own'}" in page
    assert summary["versions"]["segdpo"] in run(installed, tmp_path, segdpo, "--version")
