"""One case: a sample, mutated by the random numbers of its seed and number, and its outcome."""

import contextlib
import gc
import os
import resource
import shutil
import signal
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from types import FrameType, TracebackType

from fuzzing.hostile import Hostile
from fuzzing.kind import Files, Kind
from fuzzing.mutations import mutate_bytes
from fuzzing.place import Place
from fuzzing.watch import Watch
from segdpo.guard import is_raised_here

# The worst first: a case counts as the worst that happened in it.
OUTCOMES = (
    "code", "outside", "wrong", "crash", "memory", "time", "read outside", "traceback", "clean error", "same", "other"
)  # fmt: skip
FAILURES = OUTCOMES[:7]
# Instead of the file, something that is not a regular file, in one of so many cases.
NODES = ("fifo", "endless", "loop", "directory")
NODE_EVERY = 250


@dataclass(frozen=True)
class Mutated:
    """Files that changed; `sealed`: the checksums fit. `node`: the target became something other than a file."""

    files: Files
    sealed: bool
    node: str = ""


@dataclass(frozen=True)
class Outcome:
    """The outcome of a case; `where` is the type of an exception and the innermost line of segdpo."""

    number: int
    outcome: str
    where: str = ""
    detail: str = ""


class OutOfTime(BaseException):
    """The case takes too long; not caught by `except Exception`."""


def mutate(kind: Kind, number: int, seed: int, samples: Sequence[Files], hostile: Hostile) -> Mutated:
    """Return the mutated files of a case."""
    rng = Random(f"{seed}:{kind.name}:{number}")
    if number % NODE_EVERY < len(NODES):
        return Mutated({}, False, NODES[number % NODE_EVERY])
    files = samples[0]
    if kind.structured and rng.random() < 0.6:
        changed = kind.structured(rng, files, hostile)
        return Mutated({**changed}, True)
    others = [sample[kind.target] for sample in samples[1:]]
    data = mutate_bytes(rng, files[kind.target], others)
    # The whole of another sample is no damage that a checksum inside the file could show; archives may begin late.
    return Mutated({kind.target: data}, any(other in data for other in others))


def lay(place: Place, files: Files) -> None:
    """Write files below the folder, each as a new file: an old one may still be mapped."""
    for name, data in files.items():
        path = place.folder / name
        _remove(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def lay_node(path: Path, node: str) -> None:
    """Put something that is no regular file in place of a file."""
    _remove(path)
    if node == "fifo":
        os.mkfifo(path)
    elif node == "directory":
        path.mkdir()
    else:
        path.symlink_to("/dev/zero" if node == "endless" else path.name)


def clear(place: Place) -> None:
    """Empty the folder that is written to."""
    shutil.rmtree(place.out, ignore_errors=True)
    place.out.mkdir(exist_ok=True)


def run(
    kind: Kind, mutated: Mutated, number: int, expected: str, place: Place, watch: Watch, seconds: float
) -> Outcome:
    """Read the files as the tools do, and judge."""
    before = place.snapshot()
    found = [_step(kind, index, place, watch, seconds, number) for index in range(len(kind.steps))]
    said = "".join(one.detail for one in found if one.outcome == "same")
    if all(one.outcome == "same" for one in found) and said != expected:
        wrong = kind.checked and not mutated.sealed and not mutated.node
        found.append(Outcome(number, "wrong" if wrong else "other", "no error, but other content than was written"))
    found += [Outcome(number, outcome, what) for outcome, what in watch.seen if not _allowed(kind, outcome)]
    watch.seen.clear()
    after = place.snapshot()
    if place.canary.exists():
        found.append(Outcome(number, "code" if place.canary.is_file() else "outside", "the canary is there"))
    changed = sorted(path for path in before.keys() | after.keys() if before.get(path) != after.get(path))
    found += [Outcome(number, "outside", f"changed: {path}") for path in changed]
    rank = {outcome: index for index, outcome in enumerate(OUTCOMES)}
    return min(
        (one for one in found if one.outcome != "same" or len(found) == len(kind.steps)),
        key=lambda one: rank[one.outcome],
    )


def _allowed(kind: Kind, outcome: str) -> bool:
    return kind.any_path and outcome == "read outside"


def _step(kind: Kind, index: int, place: Place, watch: Watch, seconds: float, number: int) -> Outcome:
    clear(place)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        watch.on = True
        return Outcome(number, "same", "", kind.steps[index](place.folder, place.out))
    except OutOfTime:
        return Outcome(number, "time", f"{kind.steps[index].__name__}")
    except BaseException as error:
        return judge(error, kind, number)
    finally:
        watch.on = False
        signal.setitimer(signal.ITIMER_REAL, 0)
        if index == len(kind.steps) - 1 and number % 50 == 0:
            gc.collect()


def judge(error: BaseException, kind: Kind, number: int) -> Outcome:
    """Return whether segdpo raised the error on purpose."""
    memory = _out_of_memory(error)
    if memory:
        # There is nothing to judge it by.
        _, most = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
    where = place_of(error.__traceback__)
    text = f"{type(error).__name__} at {where}"
    detail = " ".join(str(error)[:300].split())
    if memory:
        return Outcome(number, "memory", text, detail)
    if isinstance(error, kind.clean):
        return Outcome(number, "clean error", text, detail)
    # The commands print ValueError and OSError; one that another library raised does not name the file.
    deliberate = isinstance(error, ValueError | OSError) and is_raised_here(error)
    return Outcome(number, "clean error" if deliberate and detail else "traceback", text, detail)


def place_of(trace: TracebackType | None) -> str:
    """Return the innermost line of segdpo."""
    frames = [(frame.f_code.co_filename, number, frame.f_code.co_name) for frame, number in traceback.walk_tb(trace)]
    ours = [index for index, (name, _, _) in enumerate(frames) if f"{os.sep}segdpo{os.sep}" in name]
    if not ours:
        return "(outside segdpo)"
    name, number, function = frames[ours[-1]]
    short = name.rpartition(f"{os.sep}segdpo{os.sep}")[2]
    return f"segdpo/{short}:{number} {function}"


def _out_of_memory(error: BaseException | None) -> bool:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, MemoryError) or "allocate memory" in str(error)[:2000]:
            return True
        error = error.__cause__ or error.__context__
    return False


def out_of_time(number: int, frame: FrameType | None) -> None:
    """Handle the alarm."""
    raise OutOfTime


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
