"""A finished run is not run again, another one in its folder is refused, and a stopped sweep is resumed."""

import json

import pytest
from small import SMALL, composed
from warm import Warm

from segdpo.recipes.run import differences, run_recipe
from segdpo.recipes.sweep_folder import LONGEST, run_name

SHORT = [*SMALL, "trainer.max_steps=2", "callbacks.panels=null"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    return folder, run_recipe(composed(*SHORT, folder=folder))


def test_the_same_run_returns_its_summary_and_touches_nothing(run):
    folder, summary = run
    before = {path: path.stat().st_mtime_ns for path in (folder / "run").rglob("*")}
    again = run_recipe(composed(*SHORT, "threads=2", "jobs=7", "logger=none", folder=folder))
    assert again["policy"] == summary["policy"]
    assert again["metric"] == summary["metric"]
    assert {path: path.stat().st_mtime_ns for path in (folder / "run").rglob("*")} == before


def test_another_run_in_its_folder_names_what_differs(run):
    with pytest.raises(ValueError, match=r"optimizer\.lr \(0\.01 → 0\.5\); seed \(0 → 3\)|seed .*; optimizer\.lr"):
        run_recipe(composed(*SHORT, "optimizer.lr=0.5", "seed=3", folder=run[0]))


def test_a_run_without_a_summary_is_run(run, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("seed: 7")
    summary = run_recipe(composed(*SHORT, f"cache={run[0] / 'cache'}", f"run_folder={tmp_path / 'run'}"))
    assert summary["policy"] == run[1]["policy"]


def test_a_run_that_was_moved_is_the_same_run():
    before = {"run_folder": "/a/run", "cache": "/a/cache", "path": "/a/run/checkpoints", "rate": 1e-4}
    now = {"run_folder": "/b/c", "cache": "/d", "path": "/b/c/checkpoints", "rate": 0.0001}
    assert differences(before, now) == []
    assert differences(before, {**now, "new": [1]}) == ["new.0 (nothing → 1)"]


def test_names_of_runs_are_safe_and_differ():
    long = "__".join(f"key{number}=value" for number in range(60))
    words = ["loss=dpo__seed=0", "a/b=c", "a-b=c", "a=[1,2]", "a=[1,3]", long, long + "x", "a=../../up", ""]
    names = [run_name(word) for word in words]
    assert len(set(names)) == len(words)
    assert names[0] == words[0]
    for name in names:
        assert "/" not in name
        assert 0 < len(name) <= LONGEST + 9


def test_a_run_that_fails_does_not_stop_the_others(tmp_path):
    words = ["-m", *SHORT, f"cache={tmp_path / 'cache'}", "jobs=1"]
    words += [f"hydra.sweep.dir={tmp_path / 'sweep'}", "reference_training.images=900,null"]
    assert "Expected reference_training.images to be from 1 to" in Warm(words, tmp_path).finish(status=1)
    found = [json.loads(path.read_text()) for path in (tmp_path / "sweep").glob("*/summary.json")]
    assert len(found) == 1
    assert "reference_training.images=null" in found[0]["overrides"]
    index = (tmp_path / "sweep" / "index.csv").read_text().splitlines()
    assert {line.split(",")[0] for line in index[1:]} == {
        path.parent.name for path in (tmp_path / "sweep").glob("*/.hydra")
    }
    assert "2 runs, 1 of them finished. Add resume=last" in Warm(words, tmp_path).finish(status=1)
