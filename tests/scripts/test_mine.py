"""segdpo mine: what it writes, that it resumes exactly, and the table of sources."""

import os
import re
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from omegaconf.errors import MissingMandatoryValue
from rich.console import Console
from warm import Warm

from segdpo.data.formats.folder import FolderDataset
from segdpo.data.formats.pack import PackDataset
from segdpo.files import DataError
from segdpo.recipes.mine import mine_to_disk
from segdpo.reports import sources_table

ROOT = Path(__file__).parents[2]


def composed(*overrides):
    with initialize_config_dir(str(ROOT / "conf"), version_base=None):
        return compose("mine", list(overrides))


def test_weights_must_be_named(tmp_path):
    with pytest.raises(MissingMandatoryValue, match=r"predictor\.model\.path"):
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
