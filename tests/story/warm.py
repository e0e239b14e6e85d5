"""train.py in a process of its own, forked from one that has imported the libraries: a start costs no seconds."""

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
    ["hydra", "segdpo.story.preference", "segdpo.models.segmenter", "segdpo.data.transforms", "segdpo.data.shapes"]
)


class Warm:
    """A running `python train.py …`; what it prints goes to a file."""

    def __init__(self, words: Sequence[str], folder: Path, environment: Mapping[str, str] | None = None) -> None:
        self.said = folder / f"said_{len(list(folder.glob('said_*')))}.txt"
        own = {"OMP_NUM_THREADS": "1", **(environment or {})}
        self.process: BaseProcess = _CONTEXT.Process(target=_tell, args=(list(words), folder, self.said, own))
        self.process.start()

    def finish(self, status: int = 0) -> str:
        """Wait for its end, and return what it printed."""
        self.process.join(250)
        said = self.said.read_text()
        assert self.process.exitcode == status, (self.process.exitcode, said[-4000:])
        return said


def _tell(words: Sequence[str], folder: Path, said: Path, environment: Mapping[str, str]) -> None:
    os.environ.update(environment)
    sys.path[:0] = environment.get("PYTHONPATH", "").split(os.pathsep)
    os.chdir(folder)
    with said.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    # pytest's worker has replaced them; these are a terminal's that is no terminal.
    sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)
    sys.argv = ["train.py", *words]
    runpy.run_path(str(ROOT / "train.py"), run_name="__main__")
