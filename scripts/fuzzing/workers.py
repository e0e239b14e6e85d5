"""Workers: each is a fork that runs some cases under limits; when one dies, another continues after its last case."""

import gc
import json
import os
import resource
import selectors
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from fuzzing.cases import Outcome, clear, lay, lay_node, mutate, out_of_time, run
from fuzzing.hostile import Hostile
from fuzzing.kind import Files, Kind, files_below
from fuzzing.place import Place
from fuzzing.watch import Watch

SAMPLES = 4
CHUNK = 400


@dataclass(frozen=True)
class Limits:
    """What one case may take: bytes beyond what the process has, and seconds."""

    memory: int = 2 << 30
    seconds: float = 10.0


@dataclass(frozen=True)
class Chunk:
    """Cases of a kind, one after the other."""

    kind: Kind
    numbers: Sequence[int]


@dataclass
class Worker:
    """A running fork, seen from outside; `begun` is its current case."""

    chunk: Chunk
    slot: int
    process: int
    pipe: int
    rest: bytes = b""
    failed: str = ""
    begun: int | None = None
    done: set[int] = field(default_factory=set)
    heard: float = 0.0


@dataclass(frozen=True)
class Fuzzer:
    """Samples of each kind, and what reading them gives; made once, before anything is forked."""

    root: Path
    seed: int
    limits: Limits
    samples: dict[str, list[Files]]
    expected: dict[str, str]

    @classmethod
    def prepare(cls, root: Path, kinds: Sequence[Kind], seed: int, limits: Limits) -> "Fuzzer":
        """Write the samples and read the first of each kind once, which also imports all that the readers import."""
        samples: dict[str, list[Files]] = {}
        expected: dict[str, str] = {}
        for kind in kinds:
            samples[kind.name] = []
            for number in range(SAMPLES):
                place = Place(root / "sample")
                place.make()
                kind.sample(place.folder, number)
                samples[kind.name].append(files_below(place.folder))
            place = Place(root / "sample")
            place.make()
            lay(place, samples[kind.name][0])
            expected[kind.name] = "".join(_read(step, place) for step in kind.steps)
        return cls(root, seed, limits, samples, expected)

    def start(self, chunk: Chunk, slot: int) -> Worker:
        """Fork a worker."""
        sys.stdout.flush()
        reader, writer = os.pipe()
        process = os.fork()
        if process == 0:
            status = 1
            try:
                os.close(reader)
                self._work(chunk, slot, writer)
                status = 0
            except BaseException as error:
                # A failure of the harness counts as a crash too, with its reason.
                _say(writer, {"failed": "".join(traceback.format_exception(error))[-1500:]})
            finally:
                os._exit(status)
        os.close(writer)
        os.set_blocking(reader, False)
        return Worker(chunk, slot, process, reader, heard=time.monotonic())

    def _work(self, chunk: Chunk, slot: int, pipe: int) -> None:
        place = Place(self.root / f"w{slot:02d}")
        kind = chunk.kind
        _quiet()
        place.make()
        lay(place, self.samples[kind.name][0])
        sys.path.append(str(place.root))
        watch, hostile = Watch(place), Hostile(place)
        _limit(self.limits)
        sys.addaudithook(watch)
        for number in chunk.numbers:
            mutated = mutate(kind, number, self.seed, self.samples[kind.name], hostile)
            lay(place, mutated.files)
            if mutated.node:
                lay_node(place.folder / kind.target, mutated.node)
            _say(pipe, {"begin": number})
            outcome = run(kind, mutated, number, self.expected[kind.name], place, watch, self.limits.seconds)
            _say(pipe, asdict(outcome))
            clear(place)
            if outcome.outcome in ("code", "outside", "memory", "time"):
                return  # The next worker begins in a clean place.
            originals = {name: self.samples[kind.name][0].get(name) for name in (*mutated.files, kind.target)}
            lay(place, {name: data for name, data in originals.items() if data is not None})


def run_all(fuzzer: Fuzzer, chunks: Sequence[Chunk], workers: int) -> Iterator[tuple[Kind, Outcome]]:
    """Run all cases on some workers at a time, and yield each outcome as it comes."""
    waiting = list(reversed(chunks))
    selector = selectors.DefaultSelector()
    slots = list(range(workers))
    while waiting or selector.get_map():
        while waiting and slots:
            worker = fuzzer.start(waiting.pop(), slots.pop())
            selector.register(worker.pipe, selectors.EVENT_READ, worker)
        for key, _ in selector.select(1.0):
            worker = key.data
            yield from _hear(worker)
            if worker.process == 0:
                selector.unregister(worker.pipe)
                os.close(worker.pipe)
                slots.append(worker.slot)
                yield from _rest(worker, waiting)
        _end_the_stuck([key.data for key in selector.get_map().values()], fuzzer.limits)


def _hear(worker: Worker) -> Iterator[tuple[Kind, Outcome]]:
    try:
        data = os.read(worker.pipe, 1 << 16)
    except BlockingIOError:
        return
    worker.heard = time.monotonic()
    *lines, worker.rest = (worker.rest + data).split(b"\n")
    for line in lines:
        said = json.loads(line)
        if "begin" in said:
            worker.begun = said["begin"]
            continue
        if "failed" in said:
            worker.failed = said["failed"]
            continue
        worker.done.add(said["number"])
        worker.begun = None
        yield worker.chunk.kind, Outcome(**said)
    if not data:
        _, status = os.waitpid(worker.process, 0)
        worker.process = 0
        if worker.begun is not None:
            worker.done.add(worker.begun)
            yield worker.chunk.kind, _death(worker.begun, status, worker.failed)


def _death(number: int, status: int, failed: str) -> Outcome:
    if os.WIFSIGNALED(status):
        name = signal.Signals(os.WTERMSIG(status)).name
        return Outcome(number, "time" if name == "SIGKILL" else "crash", name)
    return Outcome(number, "crash", f"exit status {os.waitstatus_to_exitcode(status)}", failed)


def _rest(worker: Worker, waiting: list[Chunk]) -> Iterator[tuple[Kind, Outcome]]:
    left = [number for number in worker.chunk.numbers if number not in worker.done]
    if left and not worker.done:
        # It died before its first case, and would die again.
        yield worker.chunk.kind, Outcome(left[0], "crash", "the worker cannot start")
        left = left[1:]
    if left:
        waiting.append(Chunk(worker.chunk.kind, left))


def _end_the_stuck(workers: Sequence[Worker], limits: Limits) -> None:
    """Kill workers that do not come back to Python, where the alarm would stop them."""
    for worker in workers:
        if time.monotonic() - worker.heard > (len(worker.chunk.kind.steps) + 1) * limits.seconds + 5:
            os.kill(worker.process, signal.SIGKILL)
            worker.heard = time.monotonic()


def _read(step: Callable[[Path, Path], str], place: Place) -> str:
    clear(place)
    return step(place.folder, place.out)


def _say(pipe: int, content: dict[str, object]) -> None:
    os.write(pipe, json.dumps(content).encode() + b"\n")


def _quiet() -> None:
    """Discard what readers print; files that Python would write by itself are not written."""
    null = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(null, number)
    sys.dont_write_bytecode = True
    # Temporary files of libraries go where nobody may write, so that they are noticed.
    tempfile.tempdir = None
    gc.freeze()


def _limit(limits: Limits) -> None:
    # Waiting for the disk is not tested, and takes longer than everything else.
    os.fsync = lambda descriptor: None  # type: ignore[assignment]
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + limits.memory, resource.RLIM_INFINITY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGALRM, out_of_time)
