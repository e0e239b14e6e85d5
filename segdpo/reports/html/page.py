"""HTML pages: one file each, without scripts or requests."""

from collections.abc import Callable, Iterable, Sequence
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from segdpo.reports.html.run import run_view
from segdpo.reports.html.sweep import sweep_view
from segdpo.reports.run_files import find_runs, is_run, read_files

Progress = Callable[[Sequence[Path]], Iterable[Path]]


def html_report(
    paths: Sequence[Path], progress: Progress = iter, *, dense: str | None = None, against: str | None = None
) -> str:
    """Return the page about a run, several runs, or the runs of sweeps.

    Args:
        paths: folders of runs or of sweeps.
        progress: wraps the runs while they are read, such as rich's `track`.
        dense: the group trained on dense gold masks; adds the share of its gain that each group recovers.
        against: a group; adds the difference of each group to it, seed by seed.

    Raises:
        FileNotFoundError: one of the paths is no folder, or holds no run.
        ValueError: there is no group called `dense` or `against`.
    """
    runs = list(dict.fromkeys(run for path in paths for run in _runs_of(path)))
    read = [read_files(run) for run in progress(runs)]
    if len(paths) == 1 and is_run(paths[0]):
        run = run_view(read[0])
        return render("run.html", title=run.title, where=str(paths[0]), run=run)
    title = paths[0].resolve().name if len(paths) == 1 else f"{len(read)} runs"
    sweep_folders = [path for path in paths if not is_run(path)]
    sweep = sweep_view(read, title, sweep_folders=sweep_folders, dense=dense, against=against)
    return render("sweep.html", title=title, where=", ".join(map(str, paths)), sweep=sweep)


def render(template: str, **values: object) -> str:
    """Return a template of templates/ filled with values; what they contain is shown as text, never as HTML."""
    page = _environment().get_template(template).render(version=_version(), **values)
    # Names of files need not be Unicode; what is not becomes a question mark.
    return page.strip().encode("utf-8", "replace").decode("utf-8") + "\n"


def _runs_of(path: Path) -> list[Path]:
    if not path.is_dir():
        raise FileNotFoundError(f"Expected the folder of a run or a sweep but there is no folder {path}.")
    runs = find_runs(path)
    if not runs:
        raise FileNotFoundError(
            f"Expected a run or a sweep in {path} but found neither summary.json, config.yaml, metrics.csv nor .hydra/ "
            "there or below; give a folder that segdpo train wrote, such as outputs/DATE/TIME or multirun/NAME."
        )
    return runs


@cache
def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("segdpo.reports.html"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _version() -> str:
    try:
        return version("segdpo")
    except PackageNotFoundError:
        return "of a checkout"
