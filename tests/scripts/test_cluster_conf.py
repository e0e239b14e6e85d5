"""conf/cluster/ over the plugins' own configurations, in a small configuration of its own."""

from pathlib import Path

import pytest
import yaml
from hydra import compose, initialize_config_dir

ROOT = Path(__file__).parents[2]
EXPECTED = {
    "local": (
        "hydra_plugins.hydra_joblib_launcher",
        {"n_jobs": 5, "batch_size": "1", "backend": None, "mmap_mode": "r"},
    ),
    "slurm": (
        "hydra_plugins.hydra_submitit_launcher",
        {"timeout_min": 240, "gpus_per_node": 1, "name": "app", "partition": None, "submitit_folder": "d/.submitit/%j"},
    ),
    "ray": (
        "hydra_plugins.hydra_ray_launcher",
        {
            "ray": {
                "init": {"address": "auto", "object_store_memory": None},
                "remote": {"num_cpus": 4, "num_gpus": 0, "max_calls": 1},
            }
        },
    ),
}

GIVEN = {"local": ["jobs=5"], "slurm": [], "ray": ["hydra.launcher.ray.init.address=auto"]}


@pytest.mark.parametrize("name", sorted(path.stem for path in (ROOT / "conf/cluster").glob("*.yaml")))
def test_ours_comes_over_the_plugins_own(tmp_path, name):
    plugin, expected = EXPECTED[name]
    pytest.importorskip(plugin)
    (tmp_path / "cluster").symlink_to(ROOT / "conf/cluster")
    main = {"defaults": ["_self_", {"cluster": "local"}], "jobs": 2, "hydra": {"sweep": {"dir": "d"}}}
    (tmp_path / "train.yaml").write_text(yaml.safe_dump(main, sort_keys=False))
    with initialize_config_dir(str(tmp_path), job_name="app", version_base="1.3"):
        config = compose("train", [f"cluster={name}", *GIVEN[name]], return_hydra_config=True)
    launcher = config.hydra.launcher
    assert launcher._target_.startswith(plugin)
    assert {key: launcher[key] for key in expected} == expected
    assert config.jobs == (5 if name == "local" else 1)
