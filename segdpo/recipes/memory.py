"""Memory after a run: what it made is freed, so that the runs of a sweep in one process take no more than one run."""

import contextlib
import ctypes
import gc
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from segdpo.recipes.sweep_folder import in_sweep


@contextmanager
def freed_at_end() -> Iterator[None]:
    """Free the networks, optimiser states and records of a run when it ends.

    Lightning's Trainer, its loops and modules refer to each other, so that only Python's collector of cycles frees
    them. It looks at old objects rarely, and kept the networks of about seven runs.
    """
    try:
        yield
    except BaseException as error:
        if in_sweep():
            _clear(error)
        raise
    finally:
        gc.collect()
        _return_to_system()


def _clear(error: BaseException | None) -> None:
    """Forget the variables of the frames of an error, its networks among them: Hydra keeps it until the sweep ends."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__


def _return_to_system() -> None:
    """Return freed memory to the system: glibc keeps it, in pieces that the next run may not be able to use."""
    with contextlib.suppress(AttributeError, OSError, TypeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)
