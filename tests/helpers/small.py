"""The main job at a size for tests: one convolution, 24 images, a few steps."""

import sys
from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig

ROOT = Path(__file__).parents[2]
CONF = ROOT / "conf"
CONVOLUTION = [
    "model=target",
    "model.network_factory._target_=torch.nn.Conv2d",
    "+model.network_factory.in_channels=3",
    "+model.network_factory.kernel_size=5",
    "+model.network_factory.padding=2",
    "model.classes_argument=out_channels",
]
STARTING = ["reference_training.steps=8", "reference_training.optimizer.lr=0.05"]
STARTED = [
    *CONVOLUTION,
    "data.count=24",
    "data.size=32",
    "optimizer.lr=0.01",
    "datamodule.batch_size=4",
    "datamodule.split.val=0.17",
    "datamodule.split.test=0.25",
    "trainer.max_steps=6",
    "trainer.accelerator=cpu",
    "trainer.log_every_n_steps=1",
    "threads=1",
    "keep=always",  # four images cannot show that the policy is better
]
SMALL = [*STARTED, *STARTING]


def composed(*overrides: str, folder: Path | None = None) -> DictConfig:
    """Compose conf/train.yaml as the command line would, with a run folder of the test's own."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        own = [] if folder is None else [f"run_folder={folder / 'run'}", f"cache={folder / 'cache'}"]
        return compose("train", overrides=[*overrides, *own])


def words_for(folder: Path, *overrides: str) -> list[str]:
    """Return what is typed after train.py for a small run that writes to `folder`."""
    return [*SMALL, f"hydra.run.dir={folder}", f"cache={folder.parent / 'cache'}", *overrides]


def command(folder: Path, *overrides: str) -> list[str]:
    """Return the command line of a small run that writes to `folder`."""
    return [sys.executable, str(ROOT / "train.py"), *words_for(folder, *overrides)]


def runs_of(params: Mapping[str, Any]) -> list[list[str]]:
    """Return the overrides of each run of a sweep with these `hydra.sweeper.params`."""
    overrides = OverridesParser.create().parse_overrides([f"{key}={value}" for key, value in params.items()])
    choices = [
        [f"{one.get_key_element()}={value}" for value in one.sweep_string_iterator()]
        if one.is_sweep_override()
        else [f"{one.get_key_element()}={one.get_value_element_as_str()}"]
        for one in overrides
    ]
    return [list(run) for run in product(*choices)]
