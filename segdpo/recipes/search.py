"""A search for hyperparameters with Optuna: its parameters, the study on disk, which is resumed, and its trials."""

import json
import logging
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

import optuna
from hydra.core.global_hydra import GlobalHydra
from hydra.core.utils import run_job
from hydra.experimental.callback import Callback
from hydra.types import HydraContext, RunMode
from omegaconf import DictConfig, OmegaConf
from optuna.study import MaxTrialsCallback, Study
from optuna.trial import TrialState
from rich.console import Console

from segdpo.files import write_atomically
from segdpo.models import check_resolvers
from segdpo.recipes.config import build
from segdpo.recipes.monitor import AUTO, with_monitor
from segdpo.recipes.run import open_data
from segdpo.recipes.sweep_folder import enter
from segdpo.renamed import current_words
from segdpo.reports import trials_png, trials_table
from segdpo.training import NonFiniteLossError, PruneTrial

log = logging.getLogger(__name__)

Value = str | int | float | bool
# A run that diverged is a trial with bad values; Optuna has no state for it, but learns from pruned trials.
DONE = (TrialState.COMPLETE, TrialState.PRUNED)


def run_search(
    run: Callable[[DictConfig, Sequence[Any]], Mapping[str, Any]], overrides: list[str], console: Console
) -> None:
    """Search as `overrides` say (hparams_search=… among them), and print the trials and the best command.

    Hydra has to be initialized with the folder of the configuration.

    Args:
        run: trains with a configuration and callbacks, and returns the run's summary.
        overrides: of conf/train.yaml.
        console: where to print.
    """
    config = _compose(overrides)
    if config.get("hparams_search") is None:
        raise ValueError(f"Expected hparams_search=… but got none; there are {', '.join(_choices())}.")
    settings = _monitored(config).hparams_search
    fixed = [word for word in overrides if not word.lstrip("+~").startswith(("hparams_search", "hydra."))]
    folder, search = Path(settings.folder), _search(settings, fixed)
    _check_keys(search, overrides)
    study = search.open()
    console.print(f"{finished(study)} of {search.n_trials} trials are done; study, trials and pictures: {folder}")

    def train(trial: optuna.Trial, values: list[str]) -> float:
        place = folder / "trials" / f"{trial.number:04d}"
        enter(place, [*fixed, *values])
        words = [*overrides, *values, f"hydra.run.dir='{place}'", "hydra.mode=RUN"]
        return _train_once(run, words, PruneTrial(trial, search.metric))

    search.run(study, train)
    write_atomically(folder / "history.png", trials_png(study, search.metric))
    console.print(trials_table(study, search.metric))
    if best := best_overrides(study):
        places = [word for word in overrides if word.startswith("hydra.searchpath=")]
        command = shlex.join(["segdpo", "train", *fixed, *best, *places])
        console.print(f"the best trial again:\n{command}", soft_wrap=True, markup=False, highlight=False)
    else:
        console.print("no trial finished; widen the ranges, or hparams_search/pruner=none")


def _monitored(config: DictConfig) -> DictConfig:
    """Return the configuration with the metric decided; the data are opened only if it depends on them."""
    if config.get("optimise") != AUTO:
        return config
    _, splits, has_gold = open_data(config)
    return with_monitor(config, len(splits.val), int(has_gold[splits.val].sum()))


@dataclass(frozen=True)
class Parameter:
    """The values that an option may have: a range, or choices.

    Attributes:
        key: the option.
        low: with `high`, a range; of integers if both are.
        high: the upper end of the range.
        log: sample the range logarithmically.
        step: sample multiples of this.
        choices: the values, instead of a range.
    """

    key: str
    low: float | int | None = None
    high: float | int | None = None
    log: bool = False
    step: float | None = None
    choices: Sequence[Value] = ()

    def __post_init__(self) -> None:
        ranged = self.low is not None and self.high is not None
        if ranged == bool(self.choices):
            raise ValueError(f"Expected {self.key} to have low and high, or choices, but got {self}; give one of both.")
        if (
            self.low is not None
            and self.high is not None
            and not (0 if self.log else -float("inf")) < self.low < self.high
        ):
            raise ValueError(
                f"Expected {self.key} to have low < high{', above 0 since log is true' if self.log else ''} but got "
                f"{self.low} and {self.high}."
            )

    def suggest(self, trial: optuna.Trial) -> Value:
        """Return the value for a trial."""
        if self.choices:
            return cast(Value, trial.suggest_categorical(self.key, list(self.choices)))
        if isinstance(self.low, int) and isinstance(self.high, int):
            return trial.suggest_int(self.key, self.low, self.high, log=self.log, step=int(self.step or 1))
        assert self.low is not None
        assert self.high is not None
        return trial.suggest_float(self.key, self.low, self.high, log=self.log, step=self.step)


@dataclass(frozen=True)
class Search:
    """A search, as conf/hparams_search/ describes it.

    Attributes:
        study: its name.
        parameters: what is searched.
        sampler: called with `seed=`.
        pruner: ends trials early.
        storage: where the study is kept, an URL of Optuna.
        n_trials: how many trials in all, those of earlier processes included.
        metric: the metric of a run that is optimised.
        direction: of the metric.
        seed: of the sampler; None: a random one.
        fixed: overrides that all trials share. A study holds the results of one experiment.
    """

    study: str
    parameters: Sequence[Parameter]
    sampler: Callable[..., optuna.samplers.BaseSampler]
    pruner: optuna.pruners.BasePruner
    storage: str
    n_trials: int
    metric: str
    direction: Literal["minimize", "maximize"] = "maximize"
    seed: int | None = 0
    fixed: Sequence[str] = field(default=())

    def open(self) -> Study:
        """Return the study, new or with its earlier trials.

        Raises:
            ValueError: the study belongs to another search.
        """
        if self.storage.startswith("sqlite:///"):
            Path(self.storage.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
        study = optuna.create_study(
            storage=self.storage,
            study_name=self.study,
            direction=self.direction,
            pruner=self.pruner,
            load_if_exists=True,
        )
        # With the same seed, a resumed study would propose its first values again.
        study.sampler = self.sampler(
            seed=None if self.seed is None else self.seed + len(study.get_trials(deepcopy=False))
        )
        known = study.user_attrs.get("search")
        if known is None:
            study.set_user_attr("search", self._identity())
        elif {**known, "fixed": sorted(current_words(known["fixed"], warn=False))} != self._identity():
            raise ValueError(
                f"Expected the study {self.study!r} in {self.storage} to be of this search but it has {known} and this "
                f"one {self._identity()}; use the same options, or another name: hparams_search.study=…"
            )
        return study

    def run(self, study: Study, train: Callable[[optuna.Trial, list[str]], float]) -> None:
        """Train until `n_trials` of the study are done.

        Args:
            study: the opened study.
            train: called with a trial and its overrides, returns the metric. A trial whose loss or metric is not finite
                counts as pruned.
        """

        def objective(trial: optuna.Trial) -> float:
            overrides = [override(parameter.key, parameter.suggest(trial)) for parameter in self.parameters]
            try:
                value = train(trial, overrides)
            except NonFiniteLossError as error:
                raise _diverged(trial, str(error)) from error
            if value is None or abs(value) == float("inf") or value != value:
                raise _diverged(trial, f"the metric is {value}")
            return float(value)

        if finished(study) < self.n_trials:
            study.optimize(objective, callbacks=[MaxTrialsCallback(self.n_trials, states=DONE)])

    def _identity(self) -> dict[str, Any]:
        parameters = {p.key: {k: v for k, v in vars(p).items() if k != "key"} for p in self.parameters}
        content = {
            "parameters": parameters,
            "metric": self.metric,
            "direction": self.direction,
            "fixed": sorted(self.fixed),
        }
        # As the database returns it: lists for tuples.
        identity: dict[str, Any] = json.loads(json.dumps(content))
        return identity


def parameters_of(config: Mapping[str, Mapping[str, Any]]) -> list[Parameter]:
    """Return the parameters of a yaml."""
    if not config:
        raise ValueError("Expected parameters to search but there are none; see conf/hparams_search/anchors.yaml.")
    return [Parameter(key, **options) for key, options in config.items()]


def finished(study: Study) -> int:
    """Return how many trials are done, pruned ones included."""
    return len(study.get_trials(deepcopy=False, states=DONE))


def override(key: str, value: Value) -> str:
    """Return key=value with four digits; the printed command is then exactly what was run."""
    return f"{key}={value:.4g}" if isinstance(value, float) else f"{key}={value}"


def best_overrides(study: Study) -> list[str]:
    """Return the values of the best trial as overrides; none if no trial is complete."""
    if not study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
        return []
    return [override(key, value) for key, value in study.best_trial.params.items()]


def _diverged(trial: optuna.Trial, why: str) -> optuna.TrialPruned:
    trial.set_user_attr("diverged", why)
    log.warning("trial %d: %s", trial.number, why)
    return optuna.TrialPruned(why)


def _search(settings: DictConfig, fixed: list[str]) -> Search:
    plain: dict[str, Any] = OmegaConf.to_container(settings, resolve=True)  # type: ignore[assignment]
    return Search(
        study=plain["study"],
        parameters=parameters_of(plain["parameters"]),
        sampler=build(settings.sampler),
        pruner=build(settings.pruner),
        storage=plain["storage"],
        n_trials=plain["n_trials"],
        metric=plain["metric"],
        direction=plain["direction"],
        seed=plain["seed"],
        fixed=fixed,
    )


def _check_keys(search: Search, overrides: list[str]) -> None:
    """Compose once with every parameter, so that a key that does not exist fails here, before a study is made."""
    first = [override(p.key, p.choices[0] if p.choices else p.low or 0) for p in search.parameters]
    _compose([*overrides, *first])


def _compose(overrides: list[str]) -> DictConfig:
    mode = {"run_mode": RunMode.RUN, "with_log_configuration": False}
    config: DictConfig = _hydra().compose_config("train", overrides, **mode)
    check_resolvers(config)
    return config


def _hydra() -> Any:
    hydra = GlobalHydra.instance().hydra
    assert hydra is not None
    return hydra


def _choices() -> list[str]:
    groups: list[str] = _hydra().config_loader.get_group_options("hparams_search")
    return [name for name in groups if name != "settings"]


def _train_once(
    run: Callable[[DictConfig, Sequence[Any]], Mapping[str, Any]], overrides: list[str], pruning: PruneTrial
) -> float:
    """Run one trial as a job of Hydra: with the folder, log and .hydra/ of any run."""

    def task(config: DictConfig) -> float | optuna.TrialPruned:
        try:
            return _metric_of(run(config, [pruning]), pruning.metric)
        except optuna.TrialPruned as pruned:  # not a failure, which Hydra would print
            return pruned

    callbacks: Any = Callback()  # ones that do nothing
    result = run_job(
        hydra_context=HydraContext(config_loader=_hydra().config_loader, callbacks=callbacks),
        task_function=task,
        config=_compose(overrides),
        job_dir_key="hydra.run.dir",
        job_subdir_key=None,
        configure_logging=False,
    ).return_value
    if isinstance(result, optuna.TrialPruned):
        raise result
    return float(result)


def _metric_of(summary: Mapping[str, Any], name: str) -> float:
    if summary.get("metric") is None:
        raise ValueError(f"Expected the run to end with {name} but it has none; does the data have a val split?")
    return float(summary["metric"])
