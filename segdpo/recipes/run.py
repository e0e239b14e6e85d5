"""Run a recipe from its configuration: what `train.py` and `scripts/search.py` call."""

import contextlib
import json
import logging
import math
import os
import platform
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, cast

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from lightning.pytorch import Callback, seed_everything
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from torch import nn

import segdpo
from segdpo.data import Batch, DataModule, RecordSource, Splits, infos_of
from segdpo.files import write_atomically
from segdpo.recipes.config import Plain, build, check_at_start, leaves, plain, read_config
from segdpo.recipes.measure import as_taken
from segdpo.reports import comparison_table, draw_curves, draw_panel
from segdpo.scores import predicted_classes
from segdpo.training import panel_rows

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
PEAK = "VmHWM:"


def reset_peak() -> None:
    """Forget the peak so far, where the system can: jobs of a sweep follow each other in one process."""
    with contextlib.suppress(OSError):
        CLEAR.write_text("5")


def peak_mib() -> float:
    """Return the process's peak resident set in MiB since `reset_peak`, or since it began; NaN where nothing says."""
    with contextlib.suppress(OSError):
        for line in STATUS.read_text().splitlines():
            if line.startswith(PEAK):
                return int(line.removeprefix(PEAK).split()[0]) / 1024
    try:
        import resource
    except ImportError:  # Windows
        return math.nan
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1024**2 if platform.system() == "Darwin" else 1024)


class Clock:
    """A stop watch."""

    def __init__(self) -> None:
        self._last = time.perf_counter()

    def lap(self) -> float:
        """Return the seconds since the last lap."""
        before, self._last = self._last, time.perf_counter()
        return self._last - before


log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Setting:
    """The configuration, the records, how they are split, and where the run writes."""

    config: DictConfig
    source: RecordSource
    splits: Splits
    folder: Path


def open_setting(config: DictConfig) -> Setting:
    """Open the data, split it, and refuse a model of other classes than the data's."""
    source: RecordSource = build(config.data)
    check_class_count(config, "model", source.classes)
    splits: Splits = build(config.datamodule.split)(infos_of(source))
    log.info("%s", splits)
    folder = Path(config.run_folder)
    folder.mkdir(parents=True, exist_ok=True)
    return Setting(config, source, splits, folder)


def check_class_count(config: DictConfig, network: str, classes: Sequence[str]) -> None:
    """Refuse a `network` of the configuration, model or reward_model, of another number of classes than the data's."""
    wanted = config[network].classes
    if wanted is not None and wanted != len(classes):
        raise ValueError(
            f"Expected {network}.classes={len(classes)} for the classes of the data ({', '.join(classes)}) but got "
            f"{wanted}; leave {network}.classes=null, or choose the data that this model is for."
        )


# What changes no number of a run.
PASSING = ("run_folder", "threads", "jobs", "cache", "resume", "logger")
SHOWN = 6


def finished(config: DictConfig) -> Plain | None:
    """Return the summary of the same run, if its folder holds one; refuse a folder that holds another run.

    A run that goes on from a checkpoint was finished with other values, such as fewer steps: it is not looked at.
    """
    folder = Path(config.run_folder)
    summary, kept = folder / "summary.json", folder / "config.yaml"
    if config.resume is not None or not (summary.exists() and kept.exists()):
        return None
    changed = differing(read_config(kept), plain(OmegaConf.create(OmegaConf.to_yaml(config, resolve=True))))
    if changed:
        more = f" and {len(changed) - SHOWN} more" if len(changed) > SHOWN else ""
        raise ValueError(
            f"Expected {folder} to be free, or to hold this very run, but it holds a finished one with other values of "
            f"{'; '.join(changed[:SHOWN])}{more}. Choose another hydra.run.dir (of a sweep: hydra.sweep.dir), or "
            "remove that folder; resume=last makes a finished run longer."
        )
    log.info("Finished already, and not run again: %s", folder)
    return cast(Plain, json.loads(summary.read_text()))


def differing(before: Plain, now: Plain) -> list[str]:
    """Return what differs between two configurations, folders aside, as "key (before → now)".

    >>> differing({"seed": 0, "threads": 1, "run_folder": "a"}, {"seed": 1, "threads": 2, "run_folder": "b"})
    ['seed (0 → 1)']
    """
    old, new = _comparable(before), _comparable(now)
    keys = [*old, *(key for key in new if key not in old)]
    none = "nothing"
    return [f"{key} ({old.get(key, none)} → {new.get(key, none)})" for key in keys if old.get(key) != new.get(key)]


def _comparable(config: Plain) -> dict[str, str]:
    folders = {str(config[key]): key for key in ("run_folder", "cache") if config.get(key)}
    kept = {key: value for key, value in config.items() if key not in PASSING}
    return {name: _without(folders, value) for name, value in leaves(kept)}


def _without(folders: dict[str, str], value: Any) -> str:
    """Return a value as text, with the run's own folders by their names: a run that was moved is the same run."""
    text = repr(value)
    for folder, name in folders.items():
        text = text.replace(folder, name)
    return text


@torch.no_grad()
def draw_test_panel(
    policy: nn.Module, reference: nn.Module, data: DataModule, path: Path, device: torch.device, images: int = 6
) -> None:
    """Draw the first test images: chosen, rejected, and what reference and policy make of them."""
    loader = data.test_dataloader()
    if isinstance(loader, list):
        return
    batch: Batch = next(iter(loader)).to(device)
    masks = {
        name: predicted_classes(network.to(device).eval()(as_taken(network, batch.image, device)))
        for name, network in (("reference", reference), ("policy", policy))
    }
    draw_panel(panel_rows(batch, masks)[:images], path, classes=data.source.classes, title="test images")


def show(folder: Path, summary: Plain) -> None:
    """Print the table of the run and draw its curves."""
    console = Console()
    if (folder / "metrics.csv").exists():
        before = summary.get("validation", {}).get("reference", {}).get("iou", {}).get("mean")
        draw_curves(folder / "metrics.csv", folder / "curves.png", reference_iou=before)
    console.print(comparison_table(summary))
    console.print(f"run folder: {folder}", soft_wrap=True)


# Groups whose names summary.json gives to what was measured; their choices are in config.yaml and the overrides.
FIGURES = ("reference",)


def run_recipe(config: DictConfig, callbacks: Sequence[Callback] = ()) -> Plain:
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
