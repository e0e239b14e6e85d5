import optuna
import pytest

from segdpo.recipes.search import Parameter, Search, override, parameters_of


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


def test_a_study_of_an_earlier_version_is_resumed_under_todays_names(tmp_path, caplog):
    def search(*fixed):
        storage = f"sqlite:///{tmp_path / 'study.db'}"
        parameters = [Parameter("beta", low=0.1, high=1.0)]
        samplers = optuna.samplers.RandomSampler, optuna.pruners.NopPruner()
        return Search("s", parameters, *samplers, storage, 1, "val/iou", fixed=fixed)

    old = search("start=few_masks", "pairs=tta", "ckpt_path=null").open().user_attrs["search"]["fixed"]
    assert old == ["ckpt_path=null", "pairs=tta", "start=few_masks"]
    assert len(search("candidates=tta", "resume=null", "reference_training=few_masks").open().trials) == 0
    assert "is now written" not in caplog.text
    with pytest.raises(ValueError, match="candidates=thresholds"):
        search("candidates=thresholds", "resume=null", "reference_training=few_masks").open()
