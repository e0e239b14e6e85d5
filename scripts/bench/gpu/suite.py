"""X1: the tests of the project that need CUDA; on a machine that has it, a skipped one counts as failed."""

import os
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from bench.row import Row, at_most
from bench.scale import Scale

ROOT = Path(__file__).parents[3]
# The kernels on the device itself; the same cases under the interpreter are the default suite's.
TESTS = ("tests/kernels/triton_cases.py", "tests/kernels/test_triton.py", "tests/test_torch_modes.py")
ELSEWHERE = "not on_a_gpu and not under_the_interpreter"
SMALL = ("tests/kernels/triton_cases.py", "by_hand or usable")
# Packages such as pytest-timeout, which pyproject.toml has options for, may be missing.
OPTIONS = ("-q", "-rs", "-p", "no:cacheprovider", "-o", "addopts=--import-mode=importlib")


@dataclass(frozen=True)
class Outcome:
    """How many tests ran, and the names of those that failed and that were skipped."""

    ran: int
    failed: tuple[str, ...]
    skipped: tuple[str, ...]


def rows(scale: Scale, folder: Path) -> Iterator[Row]:
    """Run the tests; without a GPU a few of them by Triton's interpreter."""
    folder.mkdir(parents=True, exist_ok=True)
    gpu = scale.device.type == "cuda"
    chosen = [*TESTS, "-k", ELSEWHERE] if gpu else [SMALL[0], "-k", SMALL[1]]
    report = folder / "tests.xml"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, sys.path)])}
    environment.pop("TRITON_INTERPRET", None)
    if not gpu:
        environment["TRITON_INTERPRET"] = "1"
    # conftest.py has shapes checked by beartype, which may be missing; the tests are the same without.
    without = [] if find_spec("beartype") else ["--noconftest"]
    command = [sys.executable, "-m", "pytest", *OPTIONS, *without, f"--junitxml={report}", *chosen]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if not report.exists():
        raise RuntimeError(f"pytest ended with status {done.returncode}: {(done.stdout + done.stderr)[-300:]}")
    yield row_of(outcome_of(report.read_text()))


def outcome_of(report: str) -> Outcome:
    """Return what a JUnit report of pytest says."""
    cases = list(ET.fromstring(report).iter("testcase"))
    failed = [case for case in cases if case.find("failure") is not None or case.find("error") is not None]
    skipped = [case for case in cases if case.find("skipped") is not None]
    return Outcome(
        len(cases) - len(skipped), *(tuple(one.get("name", "") for one in some) for some in (failed, skipped))
    )


def row_of(outcome: Outcome) -> Row:
    """Return the row: how many did not pass."""
    what = f"tests that failed or were skipped; {outcome.ran} ran"
    if not outcome.ran:
        return Row("X1", what, failed="no test ran")
    wrong = [*outcome.failed, *(f"{name} (skipped)" for name in outcome.skipped)]
    return Row("X1", what, "", {"ours": [float(len(wrong))]}, ("ours",), at_most(0), ", ".join(wrong))
