"""The Triton kernels: by Triton's interpreter on any machine, through the CUDA compiler, and on a GPU if there is one.

Whether kernels are interpreted is settled when triton is imported, so the cases run in processes of their own.
"""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import coverage
import pytest
import torch

import segdpo
from segdpo.kernels.triton_scores import is_usable

HERE = Path(__file__).parent
with_triton = pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed")
WITHOUT = """
import sys
sys.modules["triton"] = None  # importing it now fails, as where it is not installed
import torch
import segdpo
from segdpo.kernels.triton_scores import is_usable
chosen, rejected = torch.randint(0, 3, (2, 2, 8, 8), dtype=torch.uint8)
print(is_usable(torch.zeros(1, 2, 3)), segdpo.score_pairs(torch.zeros(2, 3, 8, 8), chosen, rejected).margin.tolist())
"""


def run(*command, **environment):
    """Run Python in a new process, measured like this one."""
    measured = coverage.Coverage.current()
    if measured is not None and command[0] == "-m":
        options = ["run", "--parallel-mode", "--branch", "--source=segdpo", f"--data-file={measured.config.data_file}"]
        command = ("-m", "coverage", *options, *command)
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST", "TRITON"))}
    environment = {**clean, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), **environment}
    done = subprocess.run([sys.executable, *command], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    return done.stdout


def run_cases(**environment):
    # Without the plug-ins of the outer run.
    words = ("-m", "pytest", str(HERE / "triton_cases.py"), "-q", "-p", "no:cacheprovider", "-p", "no:xdist")
    return run(*words, **environment)


@with_triton
def test_the_kernels_are_exact_under_the_interpreter():
    assert " passed" in run_cases(TRITON_INTERPRET="1")


@with_triton
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_the_kernels_are_exact_on_a_gpu():
    assert "skipped" not in run_cases()


@with_triton
def test_the_kernels_compile_for_cuda(tmp_path):
    """The interpreter lets pass what the compiler refuses; the compiler needs no GPU."""
    compiled = run(str(HERE / "triton_compile.py"), TRITON_CACHE_DIR=str(tmp_path))
    assert set(compiled.split()) == {"margin_forward", "chosen_forward", "softmax_gradient", "sigmoid_gradient"}


def test_everything_else_works_without_triton():
    assert run("-c", WITHOUT) == "False [0.0, 0.0]\n"


def test_logits_on_a_cpu_are_not_for_triton():
    assert not is_usable(torch.zeros(1, 2, 3))
    chosen, rejected = torch.zeros(2, 1, 4, dtype=torch.uint8)
    with pytest.raises(ValueError, match=r"on a GPU .* \(1, 3, 4\) on cpu; omit backend"):
        segdpo.score_pairs(torch.zeros(1, 3, 4), chosen, rejected, backend="triton")
