"""The folder of a sweep: short names of its runs, an index of what they stand for, and no second sweep by mistake."""

import csv
import io
import re
import shlex
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from hashlib import sha256
from pathlib import Path
from typing import Any

from filelock import FileLock
from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from segdpo.files import write_atomically
from segdpo.recipes.run_lock import locked

UNSAFE = re.compile(r"[^A-Za-z0-9._=+-]")
# Characters of a name before its hash, and of a value that is shortened.
LONGEST, LONGEST_VALUE = 80, 24
# Options that are kept in a name when there is no room for all.
NAMING = ("loss", "variant", "seed")
INDEX = "index.csv"


def run_name(overrides: str) -> str:
    """Return the folder name of a sweep's run: short, readable, and different for different overrides.

    Paths are shown by their last part, and of many options those that name a row; a hash then tells runs apart.

    >>> run_name("loss=dpo__seed=0")
    'loss=dpo__seed=0'
    >>> run_name("experiment/variant=sft__seed=0")
    'variant=sft__seed=0'
    >>> run_name("data=plain__data.root=/home/me/cells__seed=0")
    'data=plain__root=cells__seed=0-9028856b'
    """
    parts = overrides.replace("experiment/variant=", "variant=").split("__")
    name = "__".join(parts)
    if len(name) <= LONGEST and not UNSAFE.search(name):
        return name or "default"
    short = [_shortened(part) for part in parts]
    kept = [place for place, part in enumerate(short) if part.partition("=")[0] in NAMING]
    for place in range(len(short)):
        if place not in kept and len("__".join(short[one] for one in (*kept, place))) <= LONGEST:
            kept.append(place)
    name = "__".join(short[place] for place in sorted(kept))
    return f"{name[:LONGEST]}-{sha256(overrides.encode()).hexdigest()[:8]}"


# conf/train.yaml uses ${run_name:…}; processes that a launcher starts import this module too.
OmegaConf.register_new_resolver("run_name", run_name, replace=True)


class SweepFolder(Callback):
    """What Hydra calls: a folder in use is refused; so is a sweep in a folder with runs, unless resume=last.

    Each run of a sweep enters the index.
    """

    def on_run_start(self, config: DictConfig, **given: Any) -> None:
        """Hold the folder before Hydra writes to it, or end with a message: Hydra would make a warning of an error."""
        self._held = ExitStack()
        try:
            self._held.enter_context(locked(Path(config.hydra.run.dir)))
        except (OSError, ValueError) as error:
            sys.exit(str(error))

    def on_run_end(self, config: DictConfig, **given: Any) -> None:
        """Release the folder."""
        self._held.close()

    def on_multirun_start(self, config: DictConfig, **given: Any) -> None:
        """End with a message if the folder of the sweep is taken; Hydra would make a warning of an error."""
        folder = Path(config.hydra.sweep.dir)
        runs = [path.parent for path in folder.glob("*/.hydra")]
        if config.resume == "last" or not (runs or _taken(folder)):
            return
        done = sum((run / "summary.json").exists() for run in runs)
        sys.exit(
            f"Expected hydra.sweep.dir={folder} to be a new folder but it holds a sweep of {len(runs)} runs, {done} of "
            f"them finished. Add resume=last to resume it (finished runs are not run again; other values add runs), or "
            "choose another hydra.sweep.dir."
        )

    def on_job_start(self, config: DictConfig, **given: Any) -> None:
        """Enter a run of a sweep into the index."""
        if config.hydra.mode == RunMode.MULTIRUN:
            enter(Path(config.hydra.runtime.output_dir), config.hydra.overrides.task)


def in_sweep() -> bool:
    """Return whether this process runs a job of a sweep."""
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


def enter(run: Path, overrides: Sequence[str]) -> None:
    """Add a run and its overrides to index.csv beside its folder, unless it is there; jobs may start together."""
    path = run.parent / INDEX
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock"):
        before = path.read_text() if path.exists() else ""
        rows = list(csv.reader(io.StringIO(before))) or [["run", "overrides"]]
        if run.name in [row[0] for row in rows]:
            return
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([*rows, [run.name, shlex.join(overrides)]])
        write_atomically(path, text.getvalue().encode())


def _taken(folder: Path) -> bool:
    """Take a folder for a sweep, and return whether another has taken it, at the same moment too."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        (folder / INDEX).open("x").close()
    except FileExistsError:
        return True
    return False


def _shortened(part: str) -> str:
    """Return key=value with the last part of a key and of a path, and no character that a file name may not have."""
    key, sign, value = part.partition("=")
    last = re.split(r"[/\\]", value.rstrip("/\\'\""))[-1]
    return UNSAFE.sub("-", f"{re.split(r'[./]', key)[-1]}{sign}{last[:LONGEST_VALUE]}")
