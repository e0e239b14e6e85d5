"""A run folder belongs to one run at a time."""

import os
import signal
import time

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from small import CONF

from segdpo.recipes import run_lock
from segdpo.recipes.run_lock import locked
from segdpo.recipes.sweep_folder import SweepFolder


def holder(folder):
    """Fork a process that holds the folder, and a child of it that lives on."""
    process = os.fork()
    if process == 0:
        with locked(folder):
            if os.fork() == 0:
                time.sleep(8)
                os._exit(0)
            (folder / "held").touch()
            time.sleep(60)
    while not (folder / "held").exists():
        time.sleep(0.01)
    return process


def test_a_folder_is_held_until_its_process_is_killed(tmp_path, monkeypatch):
    process = holder(tmp_path)
    monkeypatch.setattr(run_lock, "PATIENCE", 0)
    try:
        with pytest.raises(ValueError, match=r"another run is writing to it; .* another hydra\.run\.dir"):
            locked(tmp_path).__enter__()
        # Before Hydra writes to it: an error would only be a warning there.
        with pytest.raises(SystemExit, match="another run is writing to it"):
            SweepFolder().on_run_start(OmegaConf.create({"hydra": {"run": {"dir": str(tmp_path)}}}))
    finally:
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
    with locked(tmp_path), locked(tmp_path):  # again in the same process
        pass


@pytest.mark.untraced
def test_runs_of_one_second_have_folders_of_their_own():
    with initialize_config_dir(str(CONF), version_base="1.3"):
        found = [compose("train", return_hydra_config=True).hydra for _ in range(2)]
    assert found[0].run.dir != found[1].run.dir
    assert found[0].sweep.dir != found[1].sweep.dir
