"""segdpo train -m on Ray with two nodes, on submitit's local executor, and on Slurm, which the tests imitate."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import fake_slurm
import pytest
from small import SMALL

ROOT = Path(__file__).parents[2]
TINY = [*SMALL, "trainer.max_steps=2", "reference_training.steps=2", "callbacks=none", "loss=dpo,hinge_anchor"]
pytestmark = [pytest.mark.untraced, pytest.mark.timeout(900)]


def sweep(folder, *words, **environment):
    """Run the sweep of two losses and return the weights of each policy."""
    command = [sys.executable, ROOT / "train.py", "-m", *TINY, f"cache={folder / 'cache'}", *words]
    command.append(f"hydra.sweep.dir={folder / 'runs'}")
    done = subprocess.run(command, cwd=folder, env=os.environ | environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return {path.parent.name: path.read_bytes() for path in folder.glob("runs/*/policy.safetensors")}


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    found = sweep(tmp_path_factory.mktemp("here"), "jobs=1")
    assert len(found) == 2
    return found


def test_ray(cluster, expected, tmp_path):
    words = ["hydra.launcher.ray.init.address=auto", "hydra.launcher.ray.remote.num_cpus=1"]
    assert sweep(tmp_path, "cluster=ray", *words, RAY_ADDRESS=cluster.address) == expected
    index = list(csv.DictReader((tmp_path / "runs/index.csv").open()))
    assert {row["run"] for row in index} == set(expected)


def test_submitit_on_this_machine(expected, tmp_path):
    words = ["~cluster", "hydra/launcher=submitit_local", "hydra.launcher.timeout_min=10"]
    assert sweep(tmp_path, *words) == expected


def test_slurm(expected, tmp_path):
    path = fake_slurm.install(tmp_path)
    assert sweep(tmp_path, "cluster=slurm", "hydra.launcher.partition=gpu", PATH=path) == expected
    asked = (tmp_path / "submitted.sh").read_text()
    for line in ("--array=0-1%2", "--partition=gpu", "--time=240", "--gpus-per-node=1", "--mem=32GB"):
        assert f"#SBATCH {line}\n" in asked
