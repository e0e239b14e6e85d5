"""The command `segdpo`: its verbs, its help without torch, and the scripts that are the same."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from warm import Warm

import segdpo
from segdpo import cli, inference, metrics, recipes

ROOT = Path(__file__).parents[1]
VERBS = ["train", "mine", "check", "pack", "predict", "evaluate", "report", "collect", "search", "export", "publish"]
FORMER = {"mine_pairs": "mine", "check_data": "check", "collect_sweep": "collect", "collect_frontier": "collect"}
HELP = """
import contextlib, sys
from segdpo.cli import VERBS, main
for words in ([], ["--help"], ["--version"], *([verb, "--help"] for verb in VERBS)):
    with contextlib.suppress(SystemExit):
        main(words)
print(sorted({"torch", "lightning"} & set(sys.modules)))
"""


def test_the_verbs_are_listed_with_one_line_each(capsys):
    assert list(cli.VERBS) == VERBS
    for words in ([], ["--help"]):
        assert cli.main(words) == 0
        lines = capsys.readouterr().out.splitlines()
        assert [line.split()[0] for line in lines if line.startswith("  ")] == VERBS
        assert all(len(line) < 100 for line in lines)


def test_version_and_unknown_verbs(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"segdpo {segdpo.__version__}\n"
    assert cli.main(["trian"]) == 2
    said = capsys.readouterr().err
    assert "'trian'" in said
    assert all(verb in said for verb in VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_a_verb_without_its_packages_names_the_extra(verb, capsys, monkeypatch):
    def run(words):
        raise ModuleNotFoundError("No module named 'optuna.samplers'", name="optuna.samplers")

    monkeypatch.setattr(cli, "VERBS", {verb: run})
    assert cli.main([verb]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert "optuna," in said.err
    assert "pip install 'segdpo[" in said.err


def test_ctrl_c_ends_in_one_line_and_its_exit_status(capsys, monkeypatch):
    def interrupted(words):
        raise KeyboardInterrupt

    monkeypatch.setattr("segdpo.cli.VERBS", {"mine": interrupted})
    assert cli.main(["mine"]) == 130
    assert capsys.readouterr().err == "Stopped by Ctrl-C.\n"


def test_help_imports_no_torch():
    done = subprocess.run([sys.executable, "-c", HELP], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    for verb in VERBS[2:]:
        assert f"usage: segdpo {verb}" in done.stdout


def test_choices_are_those_of_the_packages():
    assert cli.METRICS == metrics.MASK_METRICS
    assert cli.SPLITS == recipes.SPLITS
    assert cli.EXPORT_FORMATS == inference.FORMATS
    assert cli.PREDICTIONS == inference.KINDS


@pytest.mark.parametrize("verb", VERBS)
def test_a_script_calls_the_same_function(verb):
    path = ROOT / "train.py" if verb == "train" else ROOT / "scripts" / f"{verb}.py"
    tree = ast.parse(path.read_text())
    imported = [(node.module, node.names[0].name) for node in tree.body if isinstance(node, ast.ImportFrom)]
    assert imported == [("segdpo.cli", "main")]
    assert ast.unparse(tree.body[-1].body[0]) == f"sys.exit(main(['{verb}', *sys.argv[1:]]))"


@pytest.mark.parametrize("former", FORMER)
def test_a_former_script_runs_and_names_the_new_one(former, tmp_path):
    said = Warm(["--help"], tmp_path, script=f"scripts/{former}.py").finish()
    assert f"scripts/{former}.py" in said
    assert f"scripts/{FORMER[former]}.py" in said
    assert "--frontier" in said or "frontier" not in former


@pytest.mark.untraced  # under a tracer Hydra takes itself to be debugged, and raises
def test_train_is_a_verb(tmp_path, capsys):
    """A mistake in an option is named, with what there is, as train.py does."""
    with pytest.raises(SystemExit) as stop:
        cli.main(["train", "optimizer.learning_rate=1", f"hydra.run.dir={tmp_path}"])
    assert stop.value.code == 1
    said = capsys.readouterr().err
    assert "optimizer.learning_rate" in said
    assert "lr, weight_decay" in said


@pytest.mark.parametrize("words", [["-cp", "own"], ["--config-path=own"]])
def test_a_folder_of_configuration_is_relative_to_the_current_folder(words, tmp_path):
    (tmp_path / "own").mkdir()
    (tmp_path / "own/train.yaml").write_text("mine: 7\n")
    assert Warm([*words, "--cfg", "job"], tmp_path).finish().split() == ["mine:", "7"]
