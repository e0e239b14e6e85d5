"""Set-up of all tests: shapes in signatures are checked, Hydra composes without coverage, one thread, one seed."""

import gc
import sys
from collections.abc import Generator, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import hypothesis
import pytest
from jaxtyping import install_import_hook

try:
    import hydra
except ModuleNotFoundError:  # make test-core
    hydra = None

# Before anything imports segdpo. Only where shapes are annotated; the checks of users' input have their own tests.
install_import_hook(["segdpo.kernels", "segdpo.scores.regions"], "beartype.beartype")

import torch  # noqa: E402


@contextmanager
def _no_tracer() -> Iterator[None]:
    """Switch coverage's tracer off, which doubles the time of all Python, where no line of ours runs.

    Not below a function of ours, because its lines after the call would not be counted.
    """
    tracer = sys.gettrace()
    sys.settrace(None)
    try:
        yield
    finally:
        sys.settrace(tracer)


# A busy machine does not make a test fail.
hypothesis.settings.register_profile("patient", suppress_health_check=[hypothesis.HealthCheck.too_slow], deadline=None)
hypothesis.settings.load_profile("patient")


def _compose(*given: Any, **options: Any) -> Any:
    ours = sys._getframe(1).f_globals.get("__name__", "").startswith("segdpo")
    with nullcontext() if ours else _no_tracer():
        return _traced_compose(*given, **options)


# Before a test imports it. Hundreds of configurations are composed, at a fifth of a second each.
if hydra is not None:
    _traced_compose, hydra.compose = hydra.compose, _compose


def pytest_collection_finish() -> None:
    """Leave what is there now, half a million objects, out of the collections of garbage that each run ends with."""
    gc.collect()
    gc.freeze()


def pytest_sessionfinish() -> None:
    """Let Python free it at its end, or libraries report it as leaked."""
    gc.unfreeze()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    """Run tests that are marked untraced without coverage."""
    with _no_tracer() if item.get_closest_marker("untraced") else nullcontext():
        return (yield)


@pytest.fixture(autouse=True)
def _one_thread_and_seed() -> None:
    """Two workers share two cores, so more threads would wait for each other."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    # A Trainer with deterministic=true switches this on for the whole process.
    torch.use_deterministic_algorithms(False)
