"""Run a story from its configuration: what `train.py` and `scripts/search.py` call."""

import json
import logging
import os
import platform
import time
import warnings
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from lightning.pytorch import Callback, seed_everything
from omegaconf import DictConfig, OmegaConf

import segdpo
from segdpo.models.atomic_file import write_atomically
from segdpo.story import cell_name as cell_name  # so that every job of a sweep knows ${cell_name:…}
from segdpo.story.configs import Plain, build, check_at_start
from segdpo.story.finished import finished
from segdpo.story.outputs import show
from segdpo.story.setting import Setting, open_setting

log = logging.getLogger(__name__)

# Groups whose names summary.json gives to what was measured; their choices are in config.yaml and the overrides.
FIGURES = ("pairs", "reference")


def run_story(config: DictConfig, callbacks: Sequence[Callback] = ()) -> Plain:
    """Check the whole configuration, then run the task's story; return what summary.json says.

    `summary["metric"]` is what searches and sweeps optimise. Only the first of several processes writes. A run that is
    there already, with the same configuration, is not run again: its summary is returned.
    """
    check_at_start(config)
    if (before := finished(config)) is not None:
        return before
    quieten()
    begin = time.perf_counter()
    torch.set_num_threads(threads_of(config))
    seed_everything(config.seed, workers=True, verbose=False)
    setting = open_setting(config)
    summary: dict[str, Any] = build(config.task)(setting, callbacks)
    if not summary:  # a further process of several
        return summary
    summary = choices_of() | {"seed": config.seed, "versions": versions()} | summary
    summary["seconds"]["total"] = time.perf_counter() - begin
    write_summary(setting, summary)
    show(setting.folder, summary)
    return summary


def quieten() -> None:
    """Leave out what says nothing about this run: advertisements, what the machine lacks, libraries' own warnings."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")
    # Loaders without workers are right for small images; docs/training.md says when they are not.
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")


def threads_of(config: DictConfig) -> int:
    """Return how many CPU threads this job takes: the jobs of a sweep that run side by side share the cores."""
    sweeps = HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN
    side_by_side = config.jobs if sweeps else 1
    return int(config.threads or max(1, (os.cpu_count() or 1) // side_by_side))


def choices_of() -> dict[str, Any]:
    """Return what was chosen from each group, by Hydra's own account."""
    if not HydraConfig.initialized():
        return {}
    choices = HydraConfig.get().runtime.choices
    chosen = {group: choices[group] for group in choices if not group.startswith("hydra/") and "@" not in group}
    # A story without pairs or reference would leave the choice where tables look for figures.
    chosen = {group: choice for group, choice in chosen.items() if group not in FIGURES}
    # .hydra/ is written anew before a run can say that its folder is taken; these stay those of the summary.
    return {**chosen, "overrides": list(HydraConfig.get().overrides.task)}


def versions() -> dict[str, str]:
    """Return what the numbers may depend on beside the configuration."""
    libraries = {name: metadata.version(name) for name in ("torch", "lightning", "albumentations")}
    return {"segdpo": segdpo.__version__, "python": platform.python_version(), **libraries}


def write_summary(setting: Setting, summary: Plain) -> None:
    """Write the configuration with every ${…} filled in, then summary.json: where that is, the run is finished."""
    folder = Path(setting.folder)
    write_atomically(folder / "config.yaml", OmegaConf.to_yaml(setting.config, resolve=True).encode())
    write_atomically(folder / "summary.json", json.dumps(summary, indent=1, default=float).encode())
