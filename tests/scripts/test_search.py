"""scripts/search.py with a run that is a formula: its best is known, and it costs nothing."""

import io
import shlex
import sys
from pathlib import Path
from types import SimpleNamespace

import optuna
import pytest
import torch
import yaml
from hydra import initialize_config_dir
from lightning.pytorch import LightningModule, Trainer
from PIL import Image as Pillow
from rich.console import Console

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "scripts"))

import search as script  # noqa: E402

from segdpo.reports.trials import best_so_far, history_picture, ranked, trials_table  # noqa: E402
from segdpo.training.callbacks.pruning import PruneTrial  # noqa: E402
from segdpo.training.finite import NonFiniteLossError  # noqa: E402
from segdpo.training.search import Parameter, best_overrides, override, parameters_of  # noqa: E402

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
        script.search_with(run, ["hparams_search=mine", *overrides], Console(file=out, width=200))
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
    assert said.endswith(f"python train.py seed=4 beta={best[0]:.4g} deep.layers={best[1]}\n")
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
    assert "given up" in said
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
        script.search_with(run, ["seed=1"], Console(file=io.StringIO()))
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
        script.search_with(run, words, Console(file=io.StringIO()))
    parameters = seen[0].hparams_search.parameters
    assert 0.1 <= seen[0].beta <= 100
    assert "optimizer.lr" in parameters
    assert 1e-5 <= seen[0].optimizer.lr <= 3e-3


def test_values_are_written_with_four_digits_and_what_runs_is_what_is_said():
    assert override("optimizer.lr", 0.00012345678) == "optimizer.lr=0.0001235"
    assert override("layers", 12345678) == "layers=12345678"
    assert override("score", "image_mean") == "score=image_mean"
    assert override("freeze", False) == "freeze=False"


@pytest.mark.parametrize(
    "options",
    [{}, {"low": 1}, {"low": 1, "high": 2, "choices": [1]}, {"low": 2, "high": 2}, {"low": 0, "high": 1, "log": True}],
)
def test_a_parameter_that_is_none_is_refused(options):
    with pytest.raises(ValueError, match="Expected beta to have"):
        Parameter("beta", **options)
    with pytest.raises(ValueError, match="there are none"):
        parameters_of({})


def test_suggestions_lie_where_they_should():
    trial = optuna.trial.FixedTrial({"a": 0.5, "b": 4, "c": "x"})
    parameters = parameters_of(
        {"a": {"low": 0.1, "high": 1.0}, "b": {"low": 1, "high": 5}, "c": {"choices": ["x", "y"]}}
    )
    assert [parameter.suggest(trial) for parameter in parameters] == [0.5, 4, "x"]
    kinds = {name: type(kind).__name__ for name, kind in trial.distributions.items()}
    assert kinds == {"a": "FloatDistribution", "b": "IntDistribution", "c": "CategoricalDistribution"}


class Falling(LightningModule):
    """Validates at .5, .4, .3 …, one epoch after the other."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.level = 0.5

    def training_step(self, batch, index):
        return self.weight.sum()

    def validation_step(self, batch, index):
        self.log("val/iou", self.level)

    def on_train_epoch_end(self):
        self.level -= 0.1

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def test_lightnings_own_loop_stops_at_the_validation_that_is_too_low(tmp_path):
    study = optuna.create_study(direction="maximize", pruner=optuna.pruners.ThresholdPruner(lower=0.35))
    trial = study.ask()
    trainer = Trainer(
        max_epochs=9,
        accelerator="cpu",
        logger=False,
        callbacks=[PruneTrial(trial, "val/iou")],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    data = torch.utils.data.DataLoader(torch.zeros(2, 1))
    with pytest.raises(optuna.TrialPruned, match=r"val/iou = 0.3 after 3 validations"):
        trainer.fit(Falling(), data, data)
    steps = study.trials[0].intermediate_values
    assert steps == {1: pytest.approx(0.5), 2: pytest.approx(0.4), 3: pytest.approx(0.3)}


def test_pruning_wants_one_device_and_its_metric():
    callback = PruneTrial(optuna.trial.FixedTrial({}), "val/iou")
    with pytest.raises(ValueError, match="one device but got 2"):
        callback.setup(SimpleNamespace(world_size=2), None, "fit")
    callback.setup(SimpleNamespace(world_size=1), None, "fit")
    trainer = trainer_with({"val/loss": torch.tensor(1.0)})
    trainer.sanity_checking = True
    callback.on_validation_end(trainer, None)
    trainer.sanity_checking, trainer.state.fn = False, "validate"  # of the final weights, after training
    callback.on_validation_end(trainer, None)
    assert callback.validations == 0
    trainer.state.fn = "fit"
    with pytest.raises(ValueError, match=r"the metric 'val/iou' after validation but got val/loss"):
        callback.on_validation_end(trainer, None)


@pytest.mark.parametrize(
    ("direction", "order", "best"), [("maximize", [2, 0, 1], [3, 3, 5]), ("minimize", [1, 0, 2], [3, 1, 1])]
)
def test_reports_know_the_direction(direction, order, best):
    study = optuna.create_study(direction=direction, study_name="s")
    for value in (3.0, 1.0, 5.0):
        study.add_trial(optuna.trial.create_trial(value=value, params={}, distributions={}))
    study.add_trial(
        optuna.trial.create_trial(state=optuna.trial.TrialState.PRUNED, intermediate_values={1: 9.0, 2: 8.0})
    )
    assert [trial.number for trial in ranked(study)] == [*order, 3]
    assert best_so_far(study) == list(enumerate(best))
    table = trials_table(study, "val/iou")
    assert list(table.columns[1].cells)[-1] == "8"
    assert list(table.columns[-1].cells)[-1] == "given up"


def test_a_study_without_a_whole_trial_has_no_best_and_an_empty_picture():
    study = optuna.create_study(study_name="s")
    assert best_overrides(study) == []
    assert Pillow.open(io.BytesIO(history_picture(study, "val/iou"))).format == "PNG"
