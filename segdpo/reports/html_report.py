"""One self-contained HTML file about a run, several runs or a sweep: it opens from disk, without network or scripts."""

from collections.abc import Callable, Iterable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from jinja2 import DictLoader, Environment, StrictUndefined
from markupsafe import Markup

from segdpo.reports.html_files import RunFiles, is_run, read_files
from segdpo.reports.html_run import view_of
from segdpo.reports.html_style import STYLE
from segdpo.reports.html_sweep import sweep_view
from segdpo.reports.html_template import TEMPLATES
from segdpo.reports.html_tolerant import natural

Progress = Callable[[Sequence[Path]], Iterable[Path]]


def find_runs(path: Path) -> list[Path]:
    """Return the folder itself if it is a run's, else the runs below it, 2 before 10."""
    if is_run(path):
        return [path]
    names = (".hydra/overrides.yaml", "summary.json", "metrics.csv")
    levels = {"overrides.yaml": 2}
    found = {
        file.parents[levels.get(file.name, 1) - 1] for name in names for file in path.rglob(name) if file.is_file()
    }
    # A run's own evaluation/ has a summary.json too.
    return sorted((run for run in found if not found & set(run.parents)), key=lambda run: natural(str(run)))


def report(
    paths: Sequence[Path], progress: Progress = iter, *, dense: str | None = None, against: str | None = None
) -> str:
    """Return the page about one run, several runs, or the runs of sweeps.

    `dense`: the group trained on dense gold masks, of which others recover a part; `against`: a group that all others
    are held against, seed by seed.

    Raises:
        FileNotFoundError: one of the paths is no folder, or holds no run.
        ValueError: there is no group called `dense` or `against`.
    """
    runs = [run for path in paths for run in _runs_of(path)]
    runs = list(dict.fromkeys(runs))
    read = [read_files(run) for run in progress(runs)]
    if len(paths) == 1 and is_run(paths[0]):
        return one_page(read[0])
    view = sweep_view(
        read,
        paths[0].resolve().name if len(paths) == 1 else f"{len(read)} runs",
        planned=[path for path in paths if not is_run(path)],
        dense=dense,
        against=against,
    )
    return _page("many", title=view.title, where=", ".join(map(str, paths)), sweep=view)


def one_page(files: RunFiles) -> str:
    """Return the page about one run."""
    view = view_of(files)
    return _page("one", title=view.title, where=str(files.folder), run=view)


def _runs_of(path: Path) -> list[Path]:
    if not path.is_dir():
        raise FileNotFoundError(f"Expected the folder of a run or a sweep but there is no folder {path}.")
    runs = find_runs(path)
    if not runs:
        raise FileNotFoundError(
            f"Expected a run or a sweep in {path} but found neither summary.json, config.yaml, metrics.csv nor .hydra/ "
            "there or below; give a folder that train.py wrote, such as outputs/DATE/TIME or multirun/NAME."
        )
    return runs


def _page(template: str, **values: object) -> str:
    environment = Environment(
        loader=DictLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template(template).render(style=Markup(STYLE), version=_version(), **values)
    # Names of files need not be Unicode; what is not becomes a question mark.
    return page.strip().encode("utf-8", "replace").decode("utf-8") + "\n"


def _version() -> str:
    try:
        return version("segdpo")
    except PackageNotFoundError:
        return "of a checkout"
