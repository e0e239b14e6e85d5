"""Scripts in processes of their own, forked from one that has imported the libraries, which saves seconds a start."""

import multiprocessing
import os
import runpy
import sys
from collections.abc import Mapping, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path

from small import ROOT

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(
    [
        "hydra",
        "matplotlib.pyplot",
        "segdpo.data.shapes",
        "segdpo.data.transforms",
        "segdpo.models.segmenter",
        "segdpo.recipes.preference",
    ]
)


class Warm:
    """A running `python SCRIPT …`, started in `folder`; what it prints goes to a file there."""

    def __init__(
        self,
        words: Sequence[str],
        folder: Path,
        environment: Mapping[str, str] | None = None,
        script: str = "train.py",
    ) -> None:
        self.said = folder / f"said_{len(list(folder.glob('said_*')))}.txt"
        own = {"OMP_NUM_THREADS": "1", **(environment or {})}
        self.process: BaseProcess = _CONTEXT.Process(target=_run, args=(script, list(words), folder, self.said, own))
        self.process.start()

    def finish(self, status: int = 0) -> str:
        """Wait for its end, and return what it printed."""
        self.process.join(250)
        said = self.said.read_text()
        assert self.process.exitcode == status, (self.process.exitcode, said[-4000:])
        return said


def _run(script: str, words: Sequence[str], folder: Path, said: Path, environment: Mapping[str, str]) -> None:
    os.environ.update(environment)
    os.chdir(folder)
    with said.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    # pytest has replaced them in the process that this one was forked from.
    sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)
    sys.argv = [script, *words]
    runpy.run_path(str(ROOT / script), run_name="__main__")
