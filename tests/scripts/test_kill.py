"""scripts/kill.py: a training and a mining are killed in the middle, resumed, and write what others write."""

import subprocess
import sys

from small import ROOT


def run_kill(folder, *words):
    environment = {"PYTHONPATH": str(ROOT), "TMPDIR": str(folder), "PATH": "/usr/bin:/bin"}
    command = [sys.executable, str(ROOT / "scripts" / "kill.py"), *words]
    return subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, timeout=250)


def test_killed_and_resumed_they_write_the_same(tmp_path):
    done = run_kill(tmp_path, "--number", "1", "--seed", "52")
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    assert [line.split(": ")[0] for line in done.stdout.splitlines()] == ["train", "mine"]
    assert done.stdout.count("1 same") == 2
    assert not list(tmp_path.glob("segdpo-kill-*"))
