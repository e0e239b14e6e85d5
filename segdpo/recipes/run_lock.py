"""The lock of a run folder: no two runs write to one folder at the same time."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

log = logging.getLogger(__name__)

LOCK = ".lock"
# Processes that load data may hold the lock of a killed run until they notice, which takes up to five seconds.
PATIENCE = 6.0


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a run's folder, again where this process has it already; the system releases it when the process ends.

    The further processes of a run on several devices share the folder of the first one, which holds it.

    Raises:
        ValueError: another process holds it, after some seconds of waiting.
    """
    # Here, since --help imports this module and Lightning takes seconds.
    from lightning.pytorch.utilities import rank_zero_only

    if getattr(rank_zero_only, "rank", 0):
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder.resolve() / LOCK, is_singleton=True)
    try:
        lock.acquire(timeout=PATIENCE)
    except Timeout:
        raise ValueError(
            f"Expected {folder} for this run alone but another run is writing to it; wait until it ends, or choose "
            "another hydra.run.dir (of a sweep: hydra.sweep.dir)."
        ) from None
    except NotImplementedError:
        log.warning("The file system of %s has no locks: do not start a second run in it at the same time.", folder)
    try:
        yield
    finally:
        lock.release()
