"""Errors of files, values and options are one line; bugs show their traceback; --debug shows every one."""

import errno
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra.errors import CompactHydraException
from hydra.utils import instantiate
from safetensors import safe_open
from torch.utils.data import DataLoader
from warm import Warm

from segdpo import cli
from segdpo.data.datasets import class_shares
from segdpo.files import DataError, read_file
from segdpo.guard import HINT, errors_as_lines, explain
from segdpo.recipes import command_line as application


def error_of(function, *arguments, **options):
    """The error of a call, with its traceback."""
    with pytest.raises(Exception) as caught:  # noqa: PT011 -- of many kinds
        function(*arguments, **options)
    return caught.value


def system(number, path="/shared/cache/x.lock"):
    return OSError(number, errno.errorcode[number], path)


def of_the_text(text):
    path = Path("wrong.zip")
    path.write_text(text)
    return path


def test_errors_of_the_system_name_the_file_and_a_fix():
    for number, fix in (
        (errno.EACCES, "who may read and write"),
        (errno.EROFS, "write elsewhere"),
        (errno.ENOSPC, "free some space"),
        (errno.EMFILE, "ulimit -n"),
        (errno.EIO, "the disk"),
    ):
        line = explain(system(number))
        assert line.startswith(f"/shared/cache/x.lock: {errno.errorcode[number]}; ")
        assert fix in line
        assert line.endswith(HINT)
    assert explain(error_of(Path("/nowhere").read_bytes)).startswith("/nowhere: No such file or directory; check the")
    assert explain(OSError(errno.ENOSPC, "Expected to write x but")) == f"Expected to write x but {HINT}"


def test_what_segdpo_raises_is_said_as_it_is(tmp_path):
    line = explain(error_of(read_file, tmp_path / "a"))
    assert line.startswith(f"{tmp_path}/a: cannot be read (No such file or directory)")
    wrapped = error_of(instantiate, {"_target_": "segdpo.files.read_file", "path": str(tmp_path)})
    assert explain(wrapped).startswith(f"{tmp_path}: cannot be read: Expected a regular file")


def test_errors_of_other_packages_about_files_and_options(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = of_the_text("nothing")
    assert explain(error_of(zipfile.ZipFile, path)).startswith("BadZipFile: File is not a zip file")
    assert explain(error_of(safe_open, path, framework="pt")).startswith("SafetensorError: ")
    assert explain(error_of(int, "x")).startswith("ValueError: invalid literal")
    assert "full_key: loss" in explain(error_of(instantiate, {"loss": {"_target_": "torch.nn.Linear", "x": 1}}))
    assert "too little" in explain(torch.OutOfMemoryError("CUDA out of memory"))
    assert "too little" in explain(MemoryError())


class Damaged(torch.utils.data.Dataset):
    def __len__(self):
        return 1

    def __getitem__(self, index):
        raise DataError("images/a.png: cannot be decoded\n  restore it", "damaged")


def test_an_error_in_a_worker_of_a_loader_is_its_message_alone():
    error = error_of(next, iter(DataLoader(Damaged(), num_workers=1)))
    assert explain(error) == f"images/a.png: cannot be decoded\n  restore it {HINT}"


@pytest.mark.parametrize(
    "bug",
    [
        lambda: {}["key"],
        lambda: None.shape,
        lambda: torch.ones(2, 3) @ torch.ones(2, 3),
        lambda: class_shares(None, 2),
        lambda: np.zeros(2)[5],
    ],
)
def test_bugs_are_not_explained(bug):
    error = error_of(bug)
    assert explain(error) is None
    with pytest.raises(type(error)), errors_as_lines():
        bug()


def test_a_command_ends_with_the_line_and_with_debug_raises(capsys, monkeypatch):
    def run(words):
        assert words == ["a"]
        Path("/nowhere/b").read_bytes()

    monkeypatch.setattr(cli, "VERBS", {"pack": run})
    assert cli.main(["pack", "a"]) == 1
    assert capsys.readouterr().err == f"error /nowhere/b: No such file or directory; check the path. {HINT}\n"
    with pytest.raises(FileNotFoundError):
        cli.main(["pack", "--debug", "a"])


@pytest.mark.untraced
def test_train_ends_with_the_line(tmp_path):
    words = ["cache=/dev/null/cache", "data.count=12", "hydra.run.dir=run"]
    said = Warm(words, tmp_path).finish(status=1)
    assert "Traceback" not in said
    assert said.splitlines()[-1].startswith("error ")
    assert "/dev/null/cache" in said
    assert said.splitlines()[-1].endswith(HINT)
    assert "Traceback" in Warm([*words, "--debug"], tmp_path).finish(status=1)


def test_an_error_in_a_sweep_is_a_line_that_hydra_prints_when_the_other_jobs_are_done(monkeypatch):
    monkeypatch.setattr(application, "in_sweep", lambda: True)
    with pytest.raises(CompactHydraException, match="/nowhere/b: No such file"), application._errors_of_job():
        Path("/nowhere/b").read_bytes()
