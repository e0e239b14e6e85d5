"""Errors as people want to read them: the message, not the way it took through four libraries."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from hydra.types import RunMode
from omegaconf.errors import OmegaConfBaseException

FORESEEN = (ValueError, TypeError, KeyError, OSError, InstantiationException, OmegaConfBaseException)


@contextmanager
def in_words() -> Iterator[None]:
    """End with the message alone, status 1; HYDRA_FULL_ERROR=1 shows where it came from."""
    try:
        yield
    except FORESEEN as error:
        # A sweep goes on with its other jobs, and Hydra reports this one.
        if os.environ.get("HYDRA_FULL_ERROR") == "1" or HydraConfig.get().mode == RunMode.MULTIRUN:
            raise
        said = error.args[0] if isinstance(error, KeyError) and error.args else error
        sys.exit(f"\n{type(error).__name__}: {said}\n(HYDRA_FULL_ERROR=1 shows where this came from.)")
