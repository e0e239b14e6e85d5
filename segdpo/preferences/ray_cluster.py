"""Mining in the processes of a Ray cluster."""

import os
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from segdpo.checks import check_range
from segdpo.extras import extra_named
from segdpo.preferences.journal import Mine, Result

# Tasks for each process that are handed out before the first of their results is taken.
AHEAD = 4


def on_ray(
    mine: Mine,
    numbers: Sequence[int],
    *,
    init: Mapping[str, Any],
    num_cpus: float = 1,
    num_gpus: float = 0,
    records: int = 16,
    max_retries: int = 10,
) -> Iterator[Result]:
    """Mine records as tasks of Ray and yield the results in the order of `numbers`.

    `mine` is sent once to each process and kept there, with what it has loaded. A task whose process or machine has
    died is started again elsewhere; a record gives the same result anywhere, so nothing is lost and nothing is doubled.

    Args:
        mine: mines a record; it has to be picklable.
        numbers: of the records.
        init: arguments of `ray.init`; not used in a program that has called it.
        num_cpus: of a process.
        num_gpus: of a process.
        records: in a task.
        max_retries: how often a task is started again when its process or machine has died.

    Raises:
        ValueError: no machine of the cluster has these resources.
        ChildProcessError: a task has died `max_retries` + 1 times.
    """
    if not numbers:
        return
    check_range("engine.num_cpus", num_cpus, above=0)
    check_range("engine.records", records, least=1)
    with extra_named():
        import ray
    begun = ray.is_initialized()
    if not begun:
        # Otherwise a new Ray reports on itself to its makers.
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        ray.init(**init)
    try:
        folder = os.getcwd()

        def mine_some(some: Sequence[int]) -> list[Result]:
            os.chdir(folder)  # paths may be relative to it
            return [mine(number) for number in some]

        # max_calls=0: the process stays, also where it has a GPU.
        task = ray.remote(num_cpus=num_cpus, num_gpus=num_gpus, max_retries=max_retries, max_calls=0)(mine_some)
        waiting: deque[Any] = deque()
        for start in range(0, len(numbers), records):
            waiting.append(task.remote(numbers[start : start + records]))
            if len(waiting) >= AHEAD * _processes(ray, num_cpus, num_gpus):
                yield from _results(ray, waiting.popleft())
        while waiting:
            yield from _results(ray, waiting.popleft())
    finally:
        if not begun:
            ray.shutdown()


def _processes(ray: Any, num_cpus: float, num_gpus: float) -> int:
    """Return how many processes the machines that are there now have room for."""
    wanted = {"CPU": num_cpus, "GPU": num_gpus}
    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    count = sum(int(min(has.get(name, 0) // need for name, need in wanted.items() if need)) for has in machines)
    if count == 0:
        raise ValueError(
            f"Expected a machine with {num_cpus} CPUs and {num_gpus} GPUs but the {len(machines)} of this cluster have "
            f"{[{name: has.get(name, 0) for name in wanted} for has in machines]}; set engine.num_cpus and "
            "engine.num_gpus, or add a machine."
        )
    return count


def _results(ray: Any, task: Any) -> list[Result]:
    """Wait for a task; raise the error of its function as without Ray."""
    try:
        found: list[Result] = ray.get(task)
    except ray.exceptions.RayTaskError as error:
        raise error.cause or error from None
    except ray.exceptions.RayError as error:
        raise ChildProcessError(f"Expected Ray to mine the records but it gave up: {error}") from error
    return found
