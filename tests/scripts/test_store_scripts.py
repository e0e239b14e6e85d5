"""segdpo pack and segdpo check as a user runs them, and the commands and code of docs/data.md."""

import json
import re
import shlex
from pathlib import Path

import pytest
from stored import CLASSES, contents, draw_many, folder
from warm import Warm

from segdpo.cli import main
from segdpo.data import PackDataset, open_source
from segdpo.files import DataError

ROOT = Path(__file__).parents[2]

DATA = draw_many(4)


@pytest.fixture
def call(capsys):
    def run(verb, *words):
        status = main([verb, *(str(word) for word in words)])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run


@pytest.mark.parametrize("middle", ["d.pack", "json/d.json"])
def test_there_and_back_is_byte_identical(tmp_path, call, middle):
    root = folder(tmp_path, DATA, sealed=True)
    assert call("pack", root, tmp_path / middle)[0] == 0
    status, out, _ = call("pack", tmp_path / middle, tmp_path / "again")
    assert (status, out) == (0, f"{tmp_path / 'again'}: 4 images, a folder\n")
    assert contents(tmp_path / "again") == contents(root)


def test_a_csv_manifest_and_a_named_form(tmp_path, call):
    root = folder(tmp_path, DATA)
    assert call("pack", root, tmp_path / "p", "--to", "pack", "--records-per-shard", 3)[0] == 0
    assert sorted(path.name for path in (tmp_path / "p").glob("shard*")) == ["shard-00000.bin", "shard-00001.bin"]
    assert call("pack", tmp_path / "p", tmp_path / "f", "--manifest", "csv")[0] == 0
    assert (tmp_path / "f/manifest.csv").exists()


def test_an_option_of_another_form_is_refused(tmp_path, call):
    status, _, err = call("pack", folder(tmp_path, DATA), tmp_path / "x.pack", "--manifest", "csv")
    assert (status, "--manifest with a folder" in err) == (1, True)


def test_what_is_no_data_set_is_named(tmp_path, call):
    status, _, err = call("pack", tmp_path / "nowhere", tmp_path / "x.pack")
    assert status == 1
    assert err.startswith(f"error {tmp_path / 'nowhere'}: Expected a folder of images, a pack")
    assert "data=plain (classes, " in call("pack", tmp_path, tmp_path / "x.pack", "a=1")[2]
    root = folder(tmp_path, DATA)
    assert call("pack", root, tmp_path / "x.pack", "a=1")[2].startswith("error Expected options with")


def test_a_check_that_finds_nothing(tmp_path, call):
    root = folder(tmp_path, [DATA[0], DATA[3]])
    status, out, _ = call("check", root, "--html", tmp_path / "new/sheet.html")
    assert status == 0
    assert "2 images, 6 candidate masks, 2 pairs: nothing is wrong" in out
    assert (tmp_path / "new/sheet.html").read_text().startswith("<!doctype html>")


def test_a_check_that_finds_something(tmp_path, call):
    root = folder(tmp_path, DATA)
    (root / "images/r3.png").write_bytes(b"")
    status, out, _ = call("check", root, "--require-pairs")
    assert status == 1
    assert "error unreadable: r3: " in out
    assert "1 × unreadable (error)" in out
    assert "1 × no preference (error)" in out
    assert "something is wrong" in out
    assert call("check", root, "--require-pairs", "--allow", "no preference", "--allow", "unreadable")[0] == 0


def test_a_manifest_line_that_is_no_json(tmp_path, call):
    root = folder(tmp_path, DATA)
    with (root / "manifest.jsonl").open("a") as file:
        file.write("[oops\n")
    status, out, _ = call("check", root)
    assert status == 1
    assert out.startswith(f"error manifest: {root}/manifest.jsonl, line 5: Expected one JSON object a line")


def test_a_yaml_with_options(tmp_path, call):
    root = folder(tmp_path, DATA[:1])
    assert call("check", ROOT / "conf/data/folder.yaml", f"root='{root}'")[0] == 0
    status, out, _ = call("check", ROOT / "conf/data/folder.yaml", "root=/nowhere")
    assert (status, out.startswith("error unreadable: /nowhere/dataset.json: no such file")) == (1, True)
    assert "data.root" in call("check", ROOT / "conf/data/folder.yaml")[1]
    assert "no such file" in call("check", "nowhere.yaml")[1]


def test_json_of_something_else(tmp_path, call):
    (tmp_path / "x.json").write_text(json.dumps({"classes": CLASSES}))
    status, out, _ = call("check", tmp_path / "x.json")
    assert (status, "Expected COCO but got none" in out) == (1, True)


def blocks(language):
    """The blocks of docs/data.md in a language, comments of the shell removed."""
    text = (ROOT / "docs/data.md").read_text()
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def test_every_command_of_the_docs_runs(tmp_path, call, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "conf").symlink_to(ROOT / "conf")
    commands = [line for block in blocks("bash") for line in block.splitlines()]
    assert len(commands) == 10
    for command in commands:
        _, verb, *words = shlex.split(command, comments=True)
        if verb in ("pack", "check"):
            assert call(verb, *words)[0] == 0, command
            continue
        # Hydra's own command line, in a process of its own.
        Warm(words, tmp_path, script=f"scripts/{verb}.py").finish()
    assert len(PackDataset(tmp_path / "outputs" / "fifty")) == 50


def test_the_code_of_the_docs_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "conf").symlink_to(ROOT / "conf")
    loading, code = blocks("python")
    loaded = {}
    exec(loading, loaded)
    assert loaded["batch"].chosen.shape == (8, 64, 64)
    names = {}
    exec(code, names)
    assert names["pack"].classes == ("background", "cell")
    assert len(names["pack"]) == 10


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("_target_: pathlib.Path.touch\nself: {_target_: pathlib.Path, _args_: [touched]}", r"'pathlib\.Path\.touch'"),
        ("_target_: segdpo.data.Shapes\ncount: '${oc.create:{_target_: os.getpid}}'", r"'oc\.create'"),
    ],
)
def test_a_yaml_of_data_calls_no_gadget(text, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "theirs.yaml").write_text(text)
    with pytest.raises(DataError, match=said):
        open_source(str(tmp_path / "data" / "theirs.yaml"))
    assert not (tmp_path / "touched").exists()
