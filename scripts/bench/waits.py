"""Where Python waits for a GPU, as CUDA tells."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

# Switching the mode on has a warning of its own, which speaks of synchronisation too.
WAITED = "called a synchronizing"


@contextmanager
def noted_waits() -> Iterator[list[str]]:
    """Give a list that gets file and line of every wait inside the `with`, when it ends."""
    found: list[str] = []
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        if torch.cuda.is_available():
            torch.cuda.set_sync_debug_mode("warn")
        try:
            yield found
        finally:
            if torch.cuda.is_available():
                torch.cuda.set_sync_debug_mode("default")
            found += [f"{Path(one.filename).name}:{one.lineno}" for one in said if WAITED in str(one.message)]
