"""Shapes in signatures are checked while tests run, and nowhere else; Hydra composes untraced."""

import sys
from collections.abc import Generator, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import hydra
import hypothesis
import pytest
from jaxtyping import install_import_hook

# Before anything imports segdpo. Only where shapes are annotated: what users may get wrong has errors of its own.
install_import_hook(["segdpo.kernels", "segdpo.scores.regions"], "beartype.beartype")

import torch  # noqa: E402


@contextmanager
def _no_tracer() -> Iterator[None]:
    """Coverage's tracer doubles the time of all Python, and what calls nothing of ours has no line to be found.

    Not below a function of ours, whose lines after the call would be lost.
    """
    tracer = sys.gettrace()
    sys.settrace(None)
    try:
        yield
    finally:
        sys.settrace(tracer)


# A machine that is busy is not a mistake.
hypothesis.settings.register_profile("patient", suppress_health_check=[hypothesis.HealthCheck.too_slow], deadline=None)
hypothesis.settings.load_profile("patient")

# Before a test imports it; hundreds of configurations are composed, for a fifth of a second each.
_traced_compose = hydra.compose


def _compose(*given: Any, **options: Any) -> Any:
    ours = sys._getframe(1).f_globals.get("__name__", "").startswith("segdpo")
    with nullcontext() if ours else _no_tracer():
        return _traced_compose(*given, **options)


hydra.compose = _compose


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    """Run what is marked untraced so."""
    with _no_tracer() if item.get_closest_marker("untraced") else nullcontext():
        return (yield)


@pytest.fixture(autouse=True)
def _one_thread_and_seed() -> None:
    """Two workers share two cores; more threads would only wait for each other."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    # A Trainer with deterministic=true switches this on for the whole process.
    torch.use_deterministic_algorithms(False)
