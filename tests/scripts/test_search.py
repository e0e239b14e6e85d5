"""run_search with a run that is a formula: its best is known, and it costs nothing."""

import io
import shlex
from pathlib import Path
from types import SimpleNamespace

import optuna
import pytest
import torch
import yaml
from hydra import initialize_config_dir
from PIL import Image as Pillow
from rich.console import Console

from segdpo.recipes import run_search
from segdpo.training import NonFiniteLossError

ROOT = Path(__file__).parents[2]

SETTINGS = {
    "study": "s",
    "folder": "found/${.study}",
    "storage": "sqlite:///${.folder}/study.db",
    "n_trials": 3,
    "metric": "val/iou",
    "direction": "maximize",
    "seed": 0,
    "sampler": {"_target_": "optuna.samplers.TPESampler", "_partial_": True},
    "pruner": {"_target_": "optuna.pruners.NopPruner"},
    "parameters": {"beta": {"low": 0.1, "high": 10.0, "log": True}, "deep.layers": {"low": 1, "high": 3}},
}


@pytest.fixture
def conf(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(optuna.logging, "_default_handler", None)
    (tmp_path / "conf/hparams_search").mkdir(parents=True)
    train = {
        "defaults": ["_self_", {"hparams_search": None}],
        "beta": 1.0,
        "deep": {"layers": 2},
        "seed": 0,
        "fall": [],
    }
    (tmp_path / "conf/train.yaml").write_text(yaml.safe_dump(train, sort_keys=False))
    (tmp_path / "conf/hparams_search/mine.yaml").write_text(yaml.safe_dump(SETTINGS))
    return tmp_path / "conf"


def search(conf, run, *overrides):
    out = io.StringIO()
    with initialize_config_dir(str(conf), version_base="1.3"):
        run_search(run, ["hparams_search=mine", *overrides], Console(file=out, width=200))
    return out.getvalue()


def study_of(folder="found/s"):
    return optuna.load_study(study_name=Path(folder).name, storage=f"sqlite:///{folder}/study.db")


def trainer_with(metrics):
    return SimpleNamespace(sanity_checking=False, state=SimpleNamespace(fn="fit"), callback_metrics=metrics)


def validate(callback, *values):
    """What Lightning does around a callback."""
    for value in values:
        callback.on_validation_end(trainer_with({"val/iou": torch.tensor(value)}), None)


def test_three_trials_their_table_the_best_command_and_their_folders(conf):
    ran = []

    def run(config, callbacks):
        ran.append((config.beta, config.deep.layers, config.seed))
        validate(callbacks[0], 0.1, config.beta / 100)
        return {"metric": config.beta / 100}

    said = search(conf, run, "seed=4")
    assert len(ran) == 3
    assert all(0.1 <= beta <= 10 and layers in (1, 2, 3) and seed == 4 for beta, layers, seed in ran)
    best = max(ran)
    assert said.endswith(f"segdpo train seed=4 beta={best[0]:.4g} deep.layers={best[1]}\n")
    for number, (beta, layers, _) in enumerate(ran):
        overrides = yaml.safe_load(Path(f"found/s/trials/{number:04d}/.hydra/overrides.yaml").read_text())
        assert overrides == ["hparams_search=mine", "seed=4", f"beta={beta}", f"deep.layers={layers}"]
    assert Pillow.open("found/s/history.png").size == (840, 480)
    trial = study_of().trials[1]
    assert trial.value == ran[1][0] / 100
    assert trial.intermediate_values == {1: pytest.approx(0.1), 2: pytest.approx(ran[1][0] / 100)}


def test_a_search_goes_on_where_it_was_and_proposes_nothing_twice(conf):
    ran = []

    def run(config, callbacks):
        ran.append(config.beta)
        if len(ran) == 2:
            raise KeyboardInterrupt
        return {"metric": config.beta}

    with pytest.raises(KeyboardInterrupt):
        search(conf, run)
    said = search(conf, run)
    assert said.startswith("1 of 3 trials are done")
    assert len(ran) == 4  # 1 whole, 1 interrupted, 2 more
    assert len(set(ran)) == 4
    states = [trial.state.name for trial in study_of().trials]
    assert states == ["COMPLETE", "FAIL", "COMPLETE", "COMPLETE"]
    search(conf, run)
    assert len(ran) == 4  # done is done
    search(conf, run, "hparams_search.n_trials=4")
    assert len(ran) == 5


def test_what_falls_behind_is_given_up_in_the_middle(conf):
    """The median pruner after two whole trials of .5: a trial at .4 stops at its first validation."""
    levels = iter([0.5, 0.5, 0.4, 0.6])
    reached = []

    def run(config, callbacks):
        level = next(levels)
        for step in range(3):
            validate(callbacks[0], level)
            reached.append((level, step))
        return {"metric": level}

    pruner = ("hparams_search.pruner._target_=optuna.pruners.MedianPruner", "+hparams_search.pruner.n_startup_trials=2")
    said = search(conf, run, "hparams_search.n_trials=4", *pruner)
    assert [trial.state.name for trial in study_of().trials] == ["COMPLETE", "COMPLETE", "PRUNED", "COMPLETE"]
    assert reached == [(level, step) for level in (0.5, 0.5, 0.6) for step in range(3)]
    assert "pruned" in said
    assert study_of().trials[2].intermediate_values == {1: pytest.approx(0.4)}
    again = yaml.safe_load(Path("found/s/trials/0003/.hydra/overrides.yaml").read_text())
    assert shlex.split(said.splitlines()[-1])[2:] == [word for word in again if "hparams" not in word]


@pytest.mark.parametrize("bad", [NonFiniteLossError("NaN in images a, b"), float("nan")])
def test_a_run_that_diverges_counts_and_does_not_stop_the_search(conf, bad):
    results = iter([0.2, bad, 0.3])

    def run(config, callbacks):
        result = next(results)
        if isinstance(result, Exception):
            raise result
        return {"metric": result}

    assert "diverged" in search(conf, run)
    assert [trial.value for trial in study_of().trials if trial.state.name == "COMPLETE"] == [0.2, 0.3]
    assert study_of().trials[1].user_attrs["diverged"]


def test_an_error_stops_the_search_with_its_message(conf):
    def run(config, callbacks):
        raise ValueError("no such data")

    with pytest.raises(ValueError, match="no such data"):
        search(conf, run)


def test_a_run_without_the_metric_is_no_trial(conf):
    with pytest.raises(ValueError, match="the run to end with val/iou but it has none"):
        search(conf, lambda config, callbacks: {"metric": None}, "hparams_search.n_trials=1")


def test_a_study_holds_one_experiment_only(conf):
    def run(config, callbacks):
        return {"metric": 0.1}

    search(conf, run, "seed=1", "hparams_search.n_trials=1")
    with pytest.raises(ValueError, match=r"the study 's' in sqlite.*to be of this search.*hparams_search.study="):
        search(conf, run, "seed=2")
    search(conf, run, "seed=2", "hparams_search.n_trials=1", "hparams_search.study=other")
    assert len(study_of("found/other").trials) == 1


def test_what_is_misspelt_stops_before_a_study_is_made(conf):
    def run(config, callbacks):
        raise AssertionError

    with pytest.raises(Exception, match=r"Could not override 'deep\.lairs'"):
        search(
            conf, run, "~hparams_search.parameters.beta", "+hparams_search.parameters={deep.lairs: {low: 1, high: 2}}"
        )
    with pytest.raises(ValueError, match="there are mine"), initialize_config_dir(str(conf), version_base="1.3"):
        run_search(run, ["seed=1"], Console(file=io.StringIO()))
    with pytest.raises(Exception, match=r"(?s)hparams_search/none_such.*mine"):
        search(conf, run, "hparams_search=none_such")
    assert not Path("found").exists()


def test_the_same_seed_searches_the_same(conf):
    def run(config, callbacks):
        return {"metric": config.beta}

    for name in ("one", "two"):
        search(conf, run, f"hparams_search.study={name}", "hparams_search.n_trials=2")
    assert [t.params for t in study_of("found/one").trials] == [t.params for t in study_of("found/two").trials]


@pytest.mark.parametrize("name", sorted(path.stem for path in (ROOT / "conf/hparams_search").glob("*.yaml")))
def test_our_searches_build_and_their_keys_are_there(name, tmp_path, monkeypatch):
    if name == "settings":
        pytest.skip("what the others share")
    monkeypatch.chdir(tmp_path)
    seen = []

    def run(config, callbacks):
        seen.append(config)
        return {"metric": 0.5}

    loss = {"dpo": "dpo"}.get(name, "hinge_anchor")
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        words = [f"hparams_search={name}", f"loss={loss}", "hparams_search.n_trials=1"]
        run_search(run, words, Console(file=io.StringIO()))
    parameters = seen[0].hparams_search.parameters
    assert 0.1 <= seen[0].beta <= 100
    assert "optimizer.lr" in parameters
    assert 1e-5 <= seen[0].optimizer.lr <= 3e-3
