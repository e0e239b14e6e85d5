"""A Ray cluster of two nodes on this machine, with one CPU each."""

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PATHS = os.pathsep.join(str(path) for path in (ROOT, ROOT / "tests/helpers"))


@pytest.fixture(scope="session", autouse=True)
def environment():
    """Skip everything here in `make test`, and say where our modules are to the processes that tests start."""
    pytest.importorskip("ray", reason="Ray is not installed; make test-cluster runs these tests")
    before = os.environ.copy()
    os.environ |= {"PYTHONPATH": PATHS, "RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1"}
    yield
    os.environ.clear()
    os.environ |= before


@pytest.fixture(scope="session")
def cluster(environment, tmp_path_factory):
    from ray.cluster_utils import Cluster

    # Processes of Ray start in the folder where Ray was started; here it is another one than that of the commands.
    before = Path.cwd()
    os.chdir(tmp_path_factory.mktemp("ray"))
    # A dead node is noticed after 3 s instead of 25.
    quick = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 1000, "health_check_failure_threshold": 3}
    node = {"num_cpus": 1, "object_store_memory": 80 * 2**20}
    found = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False, "_system_config": quick})
    found.second = lambda: found.add_node(**node)
    found.second()
    os.chdir(before)
    yield found
    found.shutdown()
