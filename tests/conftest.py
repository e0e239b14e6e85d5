"""Shapes in signatures are checked while tests run, and nowhere else."""

import pytest
from jaxtyping import install_import_hook

# Before anything imports segdpo. Only where shapes are annotated: what users may get wrong has errors of its own.
install_import_hook(["segdpo.kernels", "segdpo.regions"], "beartype.beartype")

import torch  # noqa: E402


@pytest.fixture(autouse=True)
def _one_thread_and_seed() -> None:
    """Two workers share two cores; more threads would only wait for each other."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    # A Trainer with deterministic=true switches this on for the whole process.
    torch.use_deterministic_algorithms(False)
