"""From an unknown folder to masks of new images, by the commands of docs/own_data.md: three, and none fails."""

import re
import shlex

import numpy as np
import pytest
from own_data import documented_commands
from PIL import Image as Pillow
from small import CONVOLUTION, STARTING
from warm import Warm

from segdpo.cli import main
from segdpo.data import Shapes

# A network and numbers of steps that take seconds; everything else is as the check printed it.
QUICK = [*CONVOLUTION, *STARTING, "trainer.max_steps=4", "trainer.accelerator=cpu", "threads=1", "optimizer.lr=0.01"]


@pytest.fixture
def folder(tmp_path):
    """40 images, 8 of them with gold in 0 and 255, and 3 new images."""
    shapes = Shapes(count=43, size=32)
    for folder in ("MY_FOLDER/images", "MY_FOLDER/masks", "NEW_IMAGES"):
        (tmp_path / folder).mkdir(parents=True)
    for k in range(43):
        record = shapes[k]
        where = "MY_FOLDER/images" if k < 40 else "NEW_IMAGES"
        Pillow.fromarray(record.image).save(tmp_path / where / f"{k}.png")
        if k % 5 == 0 and k < 40:
            Pillow.fromarray(record.gold * np.uint8(255)).save(tmp_path / f"MY_FOLDER/masks/{k}.png")
    return tmp_path


@pytest.mark.untraced
def test_three_commands_lead_from_a_folder_to_masks(folder, capsys, monkeypatch):
    monkeypatch.chdir(folder)
    check, train, predict, *others = documented_commands()
    assert [words[0] for words in (check, train, predict)] == ["check", "train", "predict"]
    assert main(check) == 0
    out = capsys.readouterr().out
    printed = [shlex.split(line)[1:] for line in out.splitlines() if line.startswith("segdpo ")]
    assert [words[0] for words in printed] == ["train", "predict"]
    assert (folder / "check.html").is_file()
    # data.mask_format={kind:…} has to reach Hydra as it was printed.
    said = Warm([*printed[0][1:], *QUICK, f"cache={folder / 'cache'}"], folder).finish()
    assert re.search(r"Training the reference on \d of 22 training images", said)
    assert (folder / "outputs/MY_FOLDER/policy.safetensors").is_file()
    for words in (predict, printed[1]):
        assert main(words) == 0
        written = folder / words[words.index("--out") + 1] / "masks"
        assert sorted(path.name for path in written.iterdir()) == ["40.png", "41.png", "42.png"]
        assert Pillow.open(written / "41.png").size == (32, 32)
    for words in others:
        assert main(words) == 0, words
