"""The scripts, run as a user runs them; train.py: tests/story/test_command_line.py."""

import re
import subprocess
import sys
from pathlib import Path

# Numbers as a drawing has them.
NUMBER = re.compile(r"-?\d+\.\d+")
ROOT = Path(__file__).parents[1]


def run(*arguments, **options):
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, **options)


def test_a_folder_without_runs_is_named(tmp_path):
    done = run("scripts/collect_sweep.py", tmp_path)
    assert done.returncode == 2
    assert f"runs with a summary.json under {tmp_path} but found none" in done.stderr


def test_the_picture_is_drawn(tmp_path):
    done = run("scripts/draw_displacement.py", tmp_path / "picture.svg")
    assert done.returncode == 0, done.stderr
    drawn, kept = (file.read_text() for file in (tmp_path / "picture.svg", ROOT / "docs" / "displacement.svg"))
    assert NUMBER.split(drawn) == NUMBER.split(kept)
    # The last digits are those of a processor's arithmetic.
    close = [abs(float(a) - float(b)) < 1e-3 for a, b in zip(NUMBER.findall(drawn), NUMBER.findall(kept), strict=True)]
    assert all(close)
