"""Search for hyperparameters with Optuna, giving trials up in the middle of their training when they fall behind.

    python scripts/search.py hparams_search=anchors [any override of train.py …]

Stopped and started again with the same options it goes on; started several times at once (hparams_search.seed=null),
the processes share the work. What is searched, by which sampler and pruner: conf/hparams_search/. See docs/sweeps.md.
"""

import argparse
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
from hydra import initialize_config_dir
from hydra._internal.callbacks import Callbacks
from hydra.core.global_hydra import GlobalHydra
from hydra.core.utils import run_job
from hydra.errors import HydraException
from hydra.types import HydraContext, RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console
from rich.markup import escape

from segdpo.files import write_atomically
from segdpo.models import check_resolvers
from segdpo.recipes import Search, best_overrides, build, finished, override, parameters_of
from segdpo.reports import trials_png, trials_table
from segdpo.training import PruneTrial

CONF = Path(__file__).resolve().parents[1] / "conf"
Run = Callable[[DictConfig, Sequence[Any]], Mapping[str, Any]]


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="+", help="hparams_search=… first of all; the rest as for train.py")
    overrides = parser.parse_args(arguments).overrides
    # Lightning and all that it brings: only when there is something to run.
    from segdpo.recipes import run_recipe

    console = Console()
    try:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            search_with(run_recipe, overrides, console)
    except (HydraException, OmegaConfBaseException, OSError, TypeError, ValueError) as error:
        console.print(f"[red]error[/red] {escape(str(error))}", soft_wrap=True)
        return 1
    except KeyboardInterrupt:
        console.print("stopped; the same command goes on")
        return 130
    return 0


def search_with(run: Run, overrides: list[str], console: Console) -> None:
    """Search with `run`, in a Hydra that is initialized, and show what was found."""
    settings = _compose(overrides).get("hparams_search")
    if settings is None:
        raise ValueError(f"Expected hparams_search=… but got none; there are {', '.join(_choices())}.")
    fixed = [word for word in overrides if not word.lstrip("+~").startswith(("hparams_search", "hydra."))]
    folder, search = Path(settings.folder), _search(settings, fixed)
    _check_keys(search, overrides)
    study = search.open()
    console.print(f"{finished(study)} of {search.n_trials} trials are done; study, trials and pictures: {folder}")

    def train(trial: optuna.Trial, values: list[str]) -> float:
        place = f"hydra.run.dir='{folder / 'trials' / f'{trial.number:04d}'}'"
        return _train_once(run, [*overrides, *values, place, "hydra.mode=RUN"], PruneTrial(trial, search.metric))

    search.run(study, train)
    write_atomically(folder / "history.png", trials_png(study, search.metric))
    console.print(trials_table(study, search.metric))
    _say_best(console, fixed, best_overrides(study))


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
    """Compose once with every parameter, so that a key that is not there stops here, before a study is made."""
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


def _train_once(run: Run, overrides: list[str], pruning: PruneTrial) -> float:
    """Run one trial as Hydra runs a job: its folder, its log, its .hydra/ are those of any run."""

    def task(config: DictConfig) -> float | optuna.TrialPruned:
        try:
            return _metric_of(run(config, [pruning]), pruning.metric)
        # No failure: Hydra would print one.
        except optuna.TrialPruned as pruned:
            return pruned

    config = _compose(overrides)
    result = run_job(
        hydra_context=HydraContext(config_loader=_hydra().config_loader, callbacks=Callbacks(config)),
        task_function=task,
        config=config,
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


def _say_best(console: Console, fixed: list[str], best: list[str]) -> None:
    if not best:
        console.print("no trial came to its end; widen the ranges, or hparams_search/pruner=none")
        return
    command = shlex.join(["python", "train.py", *fixed, *best])
    console.print(f"the best trial again:\n{command}", soft_wrap=True, markup=False, highlight=False)


if __name__ == "__main__":
    sys.exit(main())
