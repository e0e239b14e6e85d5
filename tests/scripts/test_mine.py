"""segdpo mine: what it writes, that it resumes exactly, and the table of sources."""

import hashlib
import os
import re
import shutil
import signal
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import small
import torch
from hydra import compose, initialize_config_dir
from rich.console import Console
from trained import MEAN, STD, preparation_of, save_run, two_layers
from warm import Warm

from segdpo.data.formats.folder import FolderDataset, write_folder
from segdpo.data.formats.pack import PackDataset
from segdpo.data.shapes import Shapes
from segdpo.files import DataError
from segdpo.preferences import journal_path
from segdpo.recipes.mine import mine_to_disk, run_mine, with_contents
from segdpo.recipes.run import run_recipe
from segdpo.reports import sources_table

ROOT = Path(__file__).parents[2]


def composed(*overrides):
    with initialize_config_dir(str(ROOT / "conf"), version_base=None):
        return compose("mine", list(overrides))


def test_weights_must_be_named(tmp_path):
    with pytest.raises(ValueError, match=r"model\.weights=outputs/DATE/TIME"):
        mine_to_disk(composed("candidates=thresholds", f"out={tmp_path / 'a'}"), Console())


def test_preferences_that_the_data_came_with_are_not_mined(tmp_path):
    with pytest.raises(DataError, match="questions=answered, which takes the preferences that the data came with"):
        mine_to_disk(composed("questions=answered", f"out={tmp_path / 'a'}"), Console())
    assert not list(tmp_path.iterdir())


SETTINGS = ["data.count=120", "data.size=32", "~candidates@data.masks", "questions=all_pairs", "questions.min_gap=0.05"]


def content(out):
    files = [path for path in [*out.rglob("*"), out.with_name(f"{out.name}.mining.jsonl")] if path.is_file()]
    return {str(path.relative_to(out.parent)).replace(out.name, "out", 1): path.read_bytes() for path in files}


def started(out):
    return Warm([f"out={out}", *SETTINGS], out.parent, script="scripts/mine.py")


def lines_of(journal):
    return journal.read_bytes().count(b"\n") if journal.exists() else 0


def test_killed_and_started_again_it_ends_with_the_same_bytes(tmp_path):
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    mine_to_disk(composed(f"out={straight}", *SETTINGS), Console(quiet=True))
    journal = tmp_path / "killed.mining.jsonl"
    for enough in (5, 75):  # before the first shard is whole, and after
        running = started(killed)
        while lines_of(journal) < enough and running.process.is_alive():
            time.sleep(0.002)
        os.kill(running.process.pid, signal.SIGKILL)
        running.finish(status=-signal.SIGKILL)
    started(killed).finish()
    assert content(killed) == content(straight)
    ids = [PackDataset(killed).describe(k).id for k in range(len(PackDataset(killed)))]
    assert len(set(ids)) == len(ids)


def test_a_folder_holds_what_the_pack_holds(tmp_path):
    pack, folder = (
        mine_to_disk(composed(f"out={tmp_path / kind}", f"format={kind}", "data.count=5"), Console(quiet=True))
        for kind in ("pack", "folder")
    )
    assert repr(pack) == repr(folder)  # NaN equals nothing
    assert not (tmp_path / "folder.pack").exists()
    packed, read = PackDataset(tmp_path / "pack"), FolderDataset(tmp_path / "folder")
    assert len(packed) == len(read) == 5
    for first, second in zip(packed, read, strict=True):
        assert (first.id, first.pairs, first.mask_names, first.meta) == (
            second.id,
            second.pairs,
            second.mask_names,
            second.meta,
        )
        np.testing.assert_array_equal(first.masks, second.masks)
        np.testing.assert_array_equal(first.image, second.image)
    # Once more: nothing is left to do.
    again = mine_to_disk(composed(f"out={tmp_path / 'folder'}", "format=folder", "data.count=5"), Console(quiet=True))
    assert repr(again) == repr(folder)


def test_the_table_of_sources(tmp_path):
    summary = mine_to_disk(
        composed(f"out={tmp_path / 'a'}", "data.count=5", "candidates=annotators"), Console(quiet=True)
    )
    console = Console(record=True, width=80, quiet=True)
    console.quiet = False
    with open(os.devnull, "w") as nowhere:
        console.file = nowhere
        console.print(sources_table(summary.sources))
    text = console.export_text()
    for source in ("generous", "polygon", "missed_thin", "merged", "(together)"):
        assert re.search(re.escape(source) + r" +│ +5 │", text), text


NAMES = ("background", "object")
MULTICLASS = ["data=shapes_multiclass", "data.count=24", "data.size=32"]


def mined(out, *words):
    mine_to_disk(composed(f"out={out}", *words), Console(quiet=True))
    return PackDataset(out)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of train.py on own candidates of several classes."""
    folder = tmp_path_factory.mktemp("trained")
    words = [*small.SMALL, *MULTICLASS, "candidates=own_candidates", "candidates.count=4", "trainer.max_steps=2"]
    run_recipe(small.composed(*words, "callbacks.panels=null", folder=folder))
    return folder / "run"


@pytest.mark.untraced
@pytest.mark.parametrize("name", [".", "policy.safetensors", "checkpoints/last.ckpt"])
def test_mining_reads_what_training_wrote(run, tmp_path, name):
    words = [*MULTICLASS, "data.count=8", "candidates=own_candidates", f"model.weights={run / name}"]
    pack = mined(tmp_path / "a", *words)
    assert len(pack) > 4
    assert max(record.masks.max() for record in pack) == 3
    assert {name.split("-")[0] for record in pack for name in record.mask_names} == {"thresholds", "tta", "logit_noise"}


def test_the_network_sees_images_as_in_its_training(tmp_path, capsys):
    network = save_run(tmp_path, NAMES, preparation=preparation_of(("Resize", {"height": 24, "width": 40})))
    words = ["data.count=3", "candidates=tta", "candidates.views=[as_is,turn_180]", "model.trusted=[trained]"]
    run_mine(composed(f"out={tmp_path / 'a'}", *words, "questions=all_pairs", f"model.weights={tmp_path}"))
    assert "as trained: resized to 24 × 40, masks at the images' own size" in capsys.readouterr().out
    for record in PackDataset(tmp_path / "a"):
        seen = cv2.resize(record.image, (40, 24), interpolation=cv2.INTER_LINEAR)
        inputs = ((seen / 255 - MEAN) / STD).transpose(2, 0, 1)[None].astype(np.float32)
        with torch.no_grad():
            logits = network(torch.from_numpy(inputs))
        expected = torch.nn.functional.interpolate(logits, record.image.shape[:2], mode="bilinear", antialias=True) > 0
        np.testing.assert_array_equal(record.masks[record.mask_names.index("tta-as_is")], expected[0, 0])


def test_a_network_for_grey_images_needs_grey_images(tmp_path):
    write_folder(tmp_path / "data", Shapes(3, size=32), NAMES)
    save_run(tmp_path, NAMES, [0.4], [0.2], preparation_of(channels=1, mean=[0.4], std=[0.2]), in_channels=1)
    words = ["data=folder", f"data.root={tmp_path / 'data'}", "candidates=own_candidates", "model.trusted=[trained]"]
    words += [f"model.weights={tmp_path}"]
    with pytest.raises(DataError, match=r"channels=1, .* data has channels=3; set data\.channels=1"):
        mined(tmp_path / "a", *words)
    assert len(mined(tmp_path / "a", *words, "data.channels=1")) == 3


def test_other_weights_do_not_resume_a_mining(tmp_path):
    """The same weights elsewhere do; others under the same name do not."""
    save_run(tmp_path / "first", NAMES)
    shutil.copytree(tmp_path / "first", tmp_path / "copy")
    words = ["data.count=3", "candidates=logit_noise", "model.trusted=[trained]", f"out={tmp_path / 'a'}"]
    first = mine_to_disk(composed(*words, f"model.weights={tmp_path / 'first'}"), Console(quiet=True))
    again = mine_to_disk(composed(*words, f"model.weights={tmp_path / 'copy'}"), Console(quiet=True))
    assert repr(first) == repr(again)
    save_run(tmp_path / "copy", NAMES, width=5)
    with pytest.raises(DataError, match=r"model\.weights was 'weights of sha256 \w+' and is 'weights of sha256 \w+'"):
        mine_to_disk(composed(*words, f"model.weights={tmp_path / 'copy'}"), Console(quiet=True))


def test_a_pack_knows_what_it_was_made_with_without_its_journal(tmp_path):
    """The journal's numbers would otherwise be those of new settings, and the pack an old one."""
    words = ["data.count=4", "candidates=existing", "questions=all_pairs", f"out={tmp_path / 'a'}"]
    first = mine_to_disk(composed(*words), Console(quiet=True))
    before = {path.name: path.read_bytes() for path in (tmp_path / "a").iterdir()}
    journal = journal_path(tmp_path / "a")
    for other in ("questions=best_worst", "seed=1"):
        journal.unlink()
        with pytest.raises(
            DataError, match=r"questions\._target_ was .*all_pairs.* is .*best_worst|seed was 0 and is 1"
        ):
            mine_to_disk(composed(*words, other), Console(quiet=True))
        assert not journal.exists()
        # With the same settings the journal is written once more, and the pack stays.
        assert repr(mine_to_disk(composed(*words), Console(quiet=True))) == repr(first)
    assert {path.name: path.read_bytes() for path in (tmp_path / "a").iterdir()} == before
    # Another pack under the same name.
    shutil.rmtree(tmp_path / "a")
    other = mine_to_disk(composed(*words[:-1], "questions=best_worst", f"out={tmp_path / 'b'}"), Console(quiet=True))
    assert other.pairs < first.pairs
    (tmp_path / "b").rename(tmp_path / "a")
    with pytest.raises(DataError, match=r"questions\._target_ was"):
        mine_to_disk(composed(*words), Console(quiet=True))


def test_data_that_changed_does_not_go_on_with_a_pack(tmp_path):
    words = ["data=folder", f"data.root={tmp_path / 'data'}", "candidates=existing", f"out={tmp_path / 'a'}"]
    write_folder(tmp_path / "data", Shapes(3, size=32), NAMES)
    mined(tmp_path / "a", *words)
    for count, message in ((3, "now it is another"), (2, "is in the pack")):
        journal_path(tmp_path / "a").unlink(missing_ok=True)
        shutil.rmtree(tmp_path / "data")
        write_folder(tmp_path / "data", Shapes(count, size=40 if count == 3 else 32), NAMES)
        with pytest.raises(DataError, match=message):
            mined(tmp_path / "a", *words)


def test_contents_stand_for_weights_alone(tmp_path):
    save_run(tmp_path)
    settings = {"a": [str(tmp_path), "x" * 5000, "", "no.ckpt"], "b": {"c": None, "d": str(tmp_path / "nowhere")}}
    found = with_contents(settings)
    digest = hashlib.sha256((tmp_path / "policy.safetensors").read_bytes()).hexdigest()
    assert found == {**settings, "a": [f"weights of sha256 {digest[:32]}", *settings["a"][1:]]}


def test_several_checkpoints_are_asked(tmp_path):
    for name, width in (("early", 4), ("late", 5)):
        save_run(tmp_path / name, NAMES, width=width)
    names = [f"candidates.weights.{name}={tmp_path / name}" for name in ("early", "late")]
    words = ["data.count=3", "candidates=checkpoints", "candidates.trusted=[trained]", *names]
    assert {name for record in mined(tmp_path / "a", *words) for name in record.mask_names} == {
        "checkpoints-early",
        "checkpoints-late",
    }


@pytest.mark.parametrize("prefix", ["", "model."])
def test_a_state_dict_of_another_program(tmp_path, prefix):
    network = two_layers(1)
    torch.save({f"{prefix}{name}": value for name, value in network.state_dict().items()}, tmp_path / "own.pt")
    words = [
        "data.count=3",
        "candidates=thresholds",
        "model@model.network=target",
        f"model.weights={tmp_path / 'own.pt'}",
    ]
    pack = mined(tmp_path / "a", *words, "model.network.network_factory._target_=trained.two_layers")
    for record in pack:
        inputs = (record.image / 255 - (0.485, 0.456, 0.406)) / (0.229, 0.224, 0.225)
        with torch.no_grad():
            logits = network(torch.from_numpy(inputs.transpose(2, 0, 1)[None].astype(np.float32)))[0, 0]
        for name, mask in zip(record.mask_names, record.masks, strict=True):
            np.testing.assert_array_equal(mask, torch.sigmoid(logits) > float(name.removeprefix("thresholds-")))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["data=shapes_multiclass"], r"the data's 4 classes \(.*\) but it has 2 \(background, object\)"),
        (["model.weights=nowhere"], "nowhere: no such run or file"),
        (["model.trusted=[]"], "--trust trained"),
        (["candidates=mc_dropout"], "candidates=tta or candidates=logit_noise"),
    ],
)
def test_what_cannot_be_asked(tmp_path, words, message):
    save_run(tmp_path, NAMES)
    base = ["data.count=3", "candidates=tta", f"model.weights={tmp_path}", "model.trusted=[trained]"]
    with pytest.raises((OSError, ValueError), match=message):
        run_mine(composed(f"out={tmp_path / 'a'}", *base, *words))
