"""segdpo evaluate as people call it, and every command of docs/howto/evaluate.md."""

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pillow
from small import SMALL, composed

from segdpo.cli import main
from segdpo.recipes import run_recipe

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluate")
    run_recipe(composed(*SMALL, "callbacks.panels=null", folder=folder))
    return folder / "run"


def test_a_table_and_files(run, tmp_path, capsys):
    assert main(["evaluate", str(run), "data.count=12", "--metrics", "iou", "recall", "--out", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert re.search(r"IoU +\.\d{3}", said)
    assert "extra parts" not in said
    assert json.loads((tmp_path / "summary.json").read_text())["overrides"] == ["data.count=12"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nowhere"], "nowhere: no such run or file"),
        (["RUN", "--split", "val"], "Expected --out FOLDER"),
        (["RUN", "data=shaeps", "--out", "x"], "Could not find 'data/shaeps'"),
        (["RUN", "data=plain", "--out", "x"], "Expected a value for data.root"),
        (["RUN", "--data", "nothing.yaml", "--out", "x"], "nothing.yaml: no such file"),
        (["RUN", "data=folder", "data.root='[red]'", "--out", "x"], "[red]"),
    ],
    ids=str,
)
def test_mistakes_end_in_words(words, said, run, capsys):
    assert main(["evaluate", *(str(run) if word == "RUN" else word for word in words)]) == 1
    assert said in capsys.readouterr().err


def photos(folder):
    """Make a folder of images and masks as docs/howto/evaluate.md has it."""
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    for number in range(3):
        pixels = np.random.default_rng(number).integers(0, 256, (50, 40 + 8 * number, 3), dtype=np.uint8)
        Pillow.fromarray(pixels).save(folder / "images" / f"{number}.png")
        Pillow.fromarray((pixels[..., 0] > 128).astype(np.uint8)).save(folder / "masks" / f"{number}.png")


def test_every_command_of_the_docs_runs(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "outputs").mkdir()
    for name in ("mine", "other"):
        (tmp_path / "outputs" / name).symlink_to(run)
    (tmp_path / "conf").symlink_to(ROOT / "conf")
    photos(tmp_path / "photos")
    text = (ROOT / "docs/howto/evaluate.md").read_text()
    lines = [
        shlex.split(line, comments=True)
        for block in re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
        for line in block.splitlines()
    ]
    commands = [words for words in lines if words]
    assert len(commands) == 7
    for command, verb, *words in commands:
        assert (command, verb) == ("segdpo", "evaluate")
        assert main([verb, *words]) == 0, words
