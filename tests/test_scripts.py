"""The scripts, run as a user runs them; train.py: tests/recipes/test_command_line.py."""

import re
from pathlib import Path

import pytest
from warm import Warm

# Numbers as a drawing has them.
NUMBER = re.compile(r"-?\d+\.\d+")
ROOT = Path(__file__).parents[1]


def test_a_folder_without_runs_is_named(tmp_path):
    said = Warm([str(tmp_path)], tmp_path, script="scripts/collect.py").finish(status=1)
    assert f"runs with a summary.json under {tmp_path} but found none" in said


def test_the_picture_is_drawn(tmp_path):
    Warm([str(tmp_path / "picture.svg")], tmp_path, script="scripts/draw_displacement.py").finish()
    drawn, kept = (file.read_text() for file in (tmp_path / "picture.svg", ROOT / "docs/figures/displacement.svg"))
    assert NUMBER.split(drawn) == NUMBER.split(kept)
    # The last digits are those of a processor's arithmetic.
    close = [abs(float(a) - float(b)) < 1e-3 for a, b in zip(NUMBER.findall(drawn), NUMBER.findall(kept), strict=True)]
    assert all(close)


@pytest.mark.parametrize(
    "path", [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))], ids=lambda path: path.name
)
def test_scripts_that_documents_name_are_there_under_their_new_names(path):
    named = set(re.findall(r"scripts/[a-z_]+\.py", path.read_text()))
    assert all((ROOT / name).exists() for name in named), named
    assert not {name for name in named if "renamed_script" in (ROOT / name).read_text()}
