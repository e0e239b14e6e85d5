"""The reference in the cache: damaged, another user's, with leftovers of killed processes, trained on odd masks."""

import errno
import logging
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from small import SMALL, composed

from segdpo.files import HOST
from segdpo.models.weights import read_tensors
from segdpo.recipes import cache, reference
from segdpo.recipes.collect import collect_preferences
from segdpo.recipes.kept_preferences import made_once
from segdpo.recipes.reference import train_or_load_reference
from segdpo.recipes.run import open_run

FEW = ("reference_training=few_masks", "reference_training.images=6")


@pytest.fixture
def trained(monkeypatch):
    """The numbers of images of each training, which sets all weights to 1."""
    images = []

    def train(config, network, source, seen):
        images.append(len(seen))
        with torch.no_grad():
            [parameter.fill_(1.0) for parameter in network.parameters()]

    monkeypatch.setattr(reference, "_train", train)
    return images


@pytest.fixture
def read_only(monkeypatch, tmp_path):
    """The cache is another user's."""

    class Lock(cache.FileLock):
        def acquire(self, *given, **named):
            if self.lock_file.startswith(str(tmp_path / "cache")):
                raise PermissionError(errno.EACCES, "Permission denied", self.lock_file)
            return super().acquire(*given, **named)

    return lambda: monkeypatch.setattr(cache, "FileLock", Lock)


def run_in(folder, *words):
    return open_run(composed(*SMALL, *FEW, *words, folder=folder))


def all_ones(found):
    return all(bool((parameter == 1).all()) for parameter in found.network.parameters())


def test_a_damaged_reference_is_named_and_trained_again(tmp_path, trained, caplog):
    path = train_or_load_reference(run_in(tmp_path)).path
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with caplog.at_level(logging.WARNING):
        found = train_or_load_reference(run_in(tmp_path))
    assert (trained, found.trained) == ([6, 6], True)
    assert all_ones(found)
    assert f"damaged and is trained again: Expected weights in {path}" in caplog.text
    assert not train_or_load_reference(run_in(tmp_path)).trained
    assert set(read_tensors(path)) == set(found.network.state_dict())


def test_the_reference_of_another_user_is_read_without_its_lock(tmp_path, trained, read_only):
    path = train_or_load_reference(run_in(tmp_path)).path
    read_only()
    found = train_or_load_reference(run_in(tmp_path))
    assert (found.path, found.trained, trained) == (path, False, [6])


def test_a_reference_that_another_users_cache_lacks_is_kept_in_the_run_folder(tmp_path, trained, read_only, caplog):
    read_only()
    with caplog.at_level(logging.WARNING):
        found = train_or_load_reference(run_in(tmp_path))
    assert found.path.is_relative_to(tmp_path / "run")
    assert caplog.text.count(f"{tmp_path}/cache/references may not be written to") == 1
    assert not train_or_load_reference(run_in(tmp_path)).trained


def test_what_may_not_be_kept_is_made_each_time(tmp_path, read_only, caplog):
    read_only()
    made = []

    def make():
        made.append(1)
        return len(made)

    with caplog.at_level(logging.WARNING):
        found = [made_once(tmp_path / "cache/x" / name, lambda: None, make, str.encode) for name in "ab"]
    assert found == [1, 2]
    assert caplog.text.count("may not be written to") == 1
    assert not list((tmp_path / "cache").rglob("*.npz"))


def test_what_killed_processes_left_in_the_cache_is_removed_and_nothing_else(tmp_path, trained):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    folder = tmp_path / "cache/references"
    folder.mkdir(parents=True)
    names = {
        "dead": f".a.safetensors.{HOST}-{ended.pid}-00c0ffee.tmp",
        "running": f".a.safetensors.{HOST}-{os.getppid()}-00c0ffee.tmp",
        "of another machine": f".a.safetensors.{int(HOST, 16) ^ 1:08x}-{ended.pid}-00c0ffee.tmp",
        "old": ".a.safetensors.7-00c0ffee.tmp",
        "another program's": ".a.tmp",
    }
    for name in names.values():
        (folder / name).write_bytes(b"half")
    os.utime(folder / names["old"], (0, 0))
    train_or_load_reference(run_in(tmp_path))
    left = {name for name, file in names.items() if (folder / file).exists()}
    assert left == {"running", "of another machine", "another program's"}


def test_gold_that_is_ignored_everywhere_is_skipped_and_counted(tmp_path, trained, caplog):
    run = run_in(tmp_path)
    seen = reference.seen_images(run)
    with caplog.at_level(logging.WARNING):
        train_or_load_reference(replace(run, source=Ignored(run.source, {int(seen[2])})))
    assert trained == [5]
    assert f"Skipped 1 of 6: gold is ignored everywhere (first: {run.source[int(seen[2])].id})" in caplog.text
    with pytest.raises(ValueError, match="all 6 images is 255"):
        train_or_load_reference(replace(run_in(tmp_path, "seed=1"), source=Ignored(run.source, set(range(24)))))


class Ignored:
    """A source in which the gold of some records is ignored everywhere."""

    def __init__(self, source, numbers):
        self.source, self.numbers, self.classes = source, numbers, source.classes

    def __len__(self):
        return len(self.source)

    def __getitem__(self, index):
        record = self.source[index]
        return replace(record, gold=np.full_like(record.gold, 255)) if index in self.numbers else record


def test_images_without_preference_are_counted_by_reason(tmp_path, caplog):
    run = run_in(tmp_path, "candidates=corruptions")
    bad = [int(number) for number in run.splits.train[:2]]
    with caplog.at_level(logging.WARNING):
        found = collect_preferences(replace(run, source=Ignored(run.source, set(bad))), run.splits.train, None)
    assert f"No preference for 2: no candidate (first: {run.source[bad[0]].id})." in caplog.text
    assert len(found.splits.train) == len(run.splits.train)
