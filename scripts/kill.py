"""Kill trainings and minings at random moments, resume them, and compare what they write with uninterrupted ones.

    python scripts/kill.py --number 100 --seed 0
    python scripts/kill.py --only mine --number 20

Each process is forked from one that has imported the libraries, and killed by SIGKILL at a moment between its start and
its end; every fourth training by SIGTERM, which has to end in exit status 143 while it trains. Then the same command
resumes. Weights, metrics, predictions, packs and journals have to be those of a process that nothing stopped, byte by
byte. Exit status 1 on any difference; the folders of such runs are kept.
"""

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

# Before NumPy or torch are imported: processes are forked, and threads do not survive a fork.
os.environ.update({"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "NO_ALBUMENTATIONS_UPDATE": "1"})

from torch import Tensor, nn

# In every forked process at once.
import segdpo.recipes.mine
import segdpo.recipes.preference  # noqa: F401
from segdpo.cli import main as segdpo_main

LONGEST = 300.0  # seconds that a process may take
TRAIN = (
    *("data.count=24", "data.size=32", "datamodule.batch_size=4", "datamodule.split.val=0.17", "threads=1"),
    *("datamodule.split.test=0.25", "model=target", "model.network_factory._target_=kill.Network", "keep=always"),
    *("model.classes_argument=classes", "hold_statistics=false", "optimizer.lr=0.01", "trainer.accelerator=cpu"),
    *("trainer.max_steps=40", "trainer.log_every_n_steps=7", "callbacks.last.every_n_train_steps=3"),
    *("reference_training.steps=8", "callbacks.panels=null"),
)
MINE = ("data=shapes", "data.count=150", "data.size=32", "candidates=corruptions", "questions=all_pairs")
# What a training writes that does not depend on the moment.
WRITTEN = ("policy.safetensors", "reference.safetensors", "metrics.csv", "evaluation/images.csv")


class Network(nn.Module):
    """Convolutions with BatchNorm and dropout, so that statistics and random numbers have to be resumed too."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.parts = nn.Sequential(
            nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout2d(0.3), nn.Conv2d(4, classes, 1)
        )

    def forward(self, image: Tensor) -> Tensor:
        """Return logits."""
        logits: Tensor = self.parts(image)
        return logits


@dataclass(frozen=True)
class Kind:
    """A command whose processes are killed.

    Attributes:
        name: of the kind.
        words: the command that writes to a folder, for case number k.
        resumed: the command that resumes it.
        files: what it has written there, by name.
        forms: cases k and k + forms write the same.
    """

    name: str
    words: Callable[[Path, int], list[str]]
    resumed: Callable[[Path, int], list[str]]
    files: Callable[[Path], dict[str, bytes]]
    forms: int


def train_words(folder: Path, number: int) -> list[str]:
    """Return a training; every second one trains its reference too, the others find it in a cache."""
    cache = folder.parent / "cache" if number % 2 else folder / "cache"
    return ["train", *TRAIN, f"hydra.run.dir={folder / 'run'}", f"cache={cache}"]


def trained_files(folder: Path) -> dict[str, bytes]:
    """Return what a training has written."""
    return {name: path.read_bytes() for name in WRITTEN if (path := folder / "run" / name).exists()}


def mine_words(folder: Path, number: int) -> list[str]:
    """Return a mining; every second one writes a folder, the others a pack."""
    return ["mine", *MINE, f"format={'folder' if number % 2 else 'pack'}", f"out={folder / 'mined'}"]


def mined_files(folder: Path) -> dict[str, bytes]:
    """Return what a mining has written."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


KINDS = (
    Kind("train", train_words, lambda folder, number: [*train_words(folder, number), "resume=last"], trained_files, 2),
    Kind("mine", mine_words, mine_words, mined_files, 2),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Kill, resume and compare, print the counts, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--number", type=int, default=100, help="processes of each kind that are killed (100)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (0)")
    parser.add_argument("--only", choices=[kind.name for kind in KINDS], help="one kind")
    given = parser.parse_args(arguments)
    place = Path(tempfile.mkdtemp(prefix="segdpo-kill-"))
    bad = 0
    for kind in KINDS:
        if given.only in (None, kind.name):
            outcomes = kill_all(kind, given.number, given.seed, place / kind.name)
            bad += sum(count for outcome, count in outcomes.items() if not outcome.startswith("same"))
            print(f"{kind.name}: {', '.join(f'{count} {outcome}' for outcome, count in sorted(outcomes.items()))}")
    if bad:
        print(f"{bad} are not the same: {place}")
        return 1
    shutil.rmtree(place)
    return 0


def kill_all(kind: Kind, number: int, seed: int, place: Path) -> Counter[str]:
    """Return how often each outcome occurred."""
    rng, outcomes = random.Random(f"{kind.name}-{seed}"), Counter[str]()
    expected, seconds = [], []
    for form in range(min(kind.forms, number)):
        folder = place / f"whole-{form}"
        begun = time.monotonic()
        if status := finish(fork(kind.words(folder, form), folder)):
            raise SystemExit(f"Expected {kind.name} to end but it has exit status {status}: {folder / 'said.txt'}")
        seconds.append(time.monotonic() - begun)
        expected.append(without_log(kind.files(folder)))
    for case in range(number):
        folder, moment = place / f"killed-{case}", rng.random() * seconds[case % kind.forms]
        number_of_signal = signal.SIGTERM if kind.name == "train" and case % 4 == 3 else signal.SIGKILL
        outcome = kill_once(kind, case, folder, moment, number_of_signal, expected[case % kind.forms])
        outcomes[outcome] += 1
        if outcome.startswith("same"):
            shutil.rmtree(folder)
        else:
            print(f"{kind.name} {case}, {number_of_signal.name} after {moment:.3f} s: {outcome}: {folder}")
    return outcomes


def kill_once(
    kind: Kind, case: int, folder: Path, moment: float, number: signal.Signals, expected: dict[str, bytes]
) -> str:
    """Kill a process after so many seconds, resume it, and return the outcome."""
    process = fork(kind.words(folder, case), folder)
    time.sleep(moment)
    os.kill(process, number)
    status = finish(process)
    # Outside of training SIGTERM ends a process as the system does it, which a shell shows as 143 too.
    if status not in (0, -number, 128 + number):
        return f"stopped with exit status {status}"
    when = "that had ended" if status == 0 else f"after {number.name}"
    if status := finish(fork(kind.resumed(folder, case), folder)):
        return f"resumed with exit status {status}"
    found = without_log(kind.files(folder))
    differ = sorted(name for name in {**expected, **found} if expected.get(name) != found.get(name))
    return f"different: {', '.join(differ)}" if differ else f"same {when}"


def fork(words: Sequence[str], folder: Path) -> int:
    """Start `segdpo WORDS` and return its process id; what it says is appended to FOLDER/said.txt."""
    folder.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    if process := os.fork():
        return process
    status = 1
    try:
        said = os.open(folder / "said.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(said, 1)
        os.dup2(said, 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)
        sys.argv = ["segdpo", *words]
        status = segdpo_main(words)
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else 1
        print(stop.code)
    finally:
        os._exit(status)


def finish(process: int) -> int:
    """Wait for a process and return its exit status, or minus the signal that ended it."""
    end = time.monotonic() + LONGEST
    while time.monotonic() < end:
        done, status = os.waitpid(process, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    return -signal.SIGALRM


def without_log(files: dict[str, bytes]) -> dict[str, bytes]:
    """Leave out what the processes said."""
    return {name: content for name, content in files.items() if name != "said.txt"}


if __name__ == "__main__":
    sys.exit(main())
