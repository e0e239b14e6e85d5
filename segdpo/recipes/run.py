"""A run: its configuration, data and folder; `run_recipe` is what train.py and searches call."""

import contextlib
import json
import logging
import math
import os
import platform
import signal
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from hydra.core.hydra_config import HydraConfig
from lightning.pytorch import Callback, seed_everything
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import SIGTERMException
from numpy.typing import NDArray
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

import segdpo
from segdpo.checks import check_choice
from segdpo.data import Numbers, Preparation, RecordSource, Splits, infos_of, limited, with_gold
from segdpo.files import parse_json, read_file, remove_unfinished, write_atomically
from segdpo.models import current_name
from segdpo.recipes.config import Plain, build, check_at_start, leaves, plain, read_config
from segdpo.recipes.memory import freed_at_end
from segdpo.recipes.monitor import with_monitor
from segdpo.recipes.run_lock import locked
from segdpo.recipes.sweep_folder import in_sweep
from segdpo.renamed import REMOVED_OPTIONS, current_config
from segdpo.renamed import current_name as current_option
from segdpo.reports import comparison_table, draw_curves

log = logging.getLogger(__name__)

Figures = dict[str, Any]  # what a recipe measures, as summary.json holds it
# Where the comparison at the end compares masks with gold.
MEASURED_AT = ("image", "view")


class Clock:
    """Seconds that the stages of a run took, by name, in all processes that worked on it."""

    def __init__(self) -> None:
        self._own: dict[str, float] = {}
        self._earlier: Mapping[str, float] = {}
        self._begin = self._last = time.perf_counter()

    @property
    def seconds(self) -> dict[str, float]:
        """The seconds of each stage until its last lap."""
        return _sum(self._own, {name: each for name, each in self._earlier.items() if name != TOTAL})

    def lap(self, stage: str) -> None:
        """Add the seconds since the last lap, or since the beginning, to those of `stage`."""
        now = time.perf_counter()
        self._own = _sum(self._own, {stage: now - self._last})
        self._last = now

    def until_now(self, stage: str) -> dict[str, float]:
        """Return the seconds of each stage, those since the last lap as seconds of `stage`, and of all: `total`."""
        now = time.perf_counter()
        return _sum(_sum(self._own, {stage: now - self._last, TOTAL: now - self._begin}), self._earlier)

    def resume(self, earlier: Mapping[str, float]) -> None:
        """Count the seconds that earlier processes took until a checkpoint, what `until_now` returned there."""
        self._earlier = dict(earlier)


TOTAL = "total"


def _sum(one: Mapping[str, float], other: Mapping[str, float]) -> dict[str, float]:
    return {name: one.get(name, 0.0) + other.get(name, 0.0) for name in {**one, **other}}


@dataclass(frozen=True, eq=False)
class Run:
    """The configuration, the records and their splits, the folder that the run writes to, and its clock.

    `has_gold` [records]: where it is known already which records have gold.
    """

    config: DictConfig
    source: RecordSource
    splits: Splits
    folder: Path
    clock: Clock = field(default_factory=Clock)
    has_gold: NDArray[np.bool_] | None = None

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes of the data."""
        return tuple(self.source.classes)

    def with_gold(self, images: Numbers) -> Numbers:
        """Return those of the images that have gold."""
        return with_gold(self.source, images) if self.has_gold is None else images[self.has_gold[images]]

    @property
    def preparation(self) -> Preparation:
        """How images become the input of the networks of this run, wherever they predict."""
        return preparation_of(self.config, self.source)


Recipe = Callable[[Run, Sequence[Callback]], Figures]


@freed_at_end()
def run_recipe(config: DictConfig, callbacks: Sequence[Callback] = ()) -> Figures:
    """Run the recipe of the configuration's task and write summary.json.

    Args:
        config: the whole configuration, as conf/train.yaml composes it.
        callbacks: callbacks of Lightning beside those of the configuration.

    Returns:
        What summary.json holds; `metric` is what searches and sweeps optimise. Empty in all processes but the first. If
        the folder holds this very run, finished, its summary is returned and nothing runs.

    Raises:
        ValueError: the folder holds another finished run, or another run is writing to it.
        SystemExit: SIGTERM or Ctrl-C stopped the training.
    """
    check_at_start(config)
    with locked(Path(config.run_folder)), exit_statuses():
        earlier = finished(config)
        return _run_unfinished(config, callbacks) if earlier is None else earlier


def _run_unfinished(config: DictConfig, callbacks: Sequence[Callback]) -> Figures:
    quieten()
    clock = Clock()
    torch.set_num_threads(_threads_of(config))
    seed_everything(config.seed, workers=True, verbose=False)
    run = replace(open_run(config), clock=clock)
    run = replace(run, config=with_monitor(config, len(run.splits.val), len(run.with_gold(run.splits.val))))
    recipe: Recipe = build(config.task)
    summary = recipe(run, callbacks)
    if not summary:
        return {}
    seconds = clock.until_now("comparison")
    described = {
        "seed": config.seed,
        "max_steps": config.trainer.get("max_steps"),
        "monitor": run.config.optimise,
        "versions": _versions(),
    }
    summary = _choices() | described | summary | {"seconds": seconds}
    write_atomically(run.folder / "config.yaml", OmegaConf.to_yaml(config, resolve=True).encode())
    # Last: a run with a summary.json is finished.
    write_atomically(run.folder / "summary.json", json.dumps(summary, indent=1, default=float).encode())
    _show(run.folder, summary)
    return summary


@contextmanager
def exit_statuses() -> Iterator[None]:
    """Let a process that Lightning stops have the exit status of the signal: 143 after SIGTERM, 130 after Ctrl-C."""
    try:
        yield
    except SystemExit as stop:
        if isinstance(stop, SIGTERMException):
            # Lightning kills the first process where one of the others ends with another status than 0.
            raise SystemExit(0 if getattr(rank_zero_only, "rank", 0) else 128 + signal.SIGTERM) from stop
        if isinstance(stop.__context__, KeyboardInterrupt):
            raise SystemExit(128 + signal.SIGINT) from stop
        raise


def open_run(config: DictConfig) -> Run:
    """Open the data, split it, and make the folder.

    Raises:
        ValueError: the model has another number of classes than the data, or the views do not show whole images.
    """
    source, splits, has_gold = open_data(config)
    check_class_count(config, "model", source.classes)
    log.info("%s", splits)
    run = Run(config, source, splits, Path(config.run_folder), has_gold=has_gold)
    _check_measured_at(run)
    run.folder.mkdir(parents=True, exist_ok=True)
    remove_unfinished(run.folder)
    return run


def _check_measured_at(run: Run) -> None:
    """Refuse, before anything is trained, views in which test images cannot be measured at their own size."""
    check_choice("measured_at", run.config.measured_at, MEASURED_AT)
    if run.config.measured_at == "image" and len(run.splits.test):
        record = run.source[int(run.splits.test[0])]
        run.preparation.input_of(record.image, record.id)


def preparation_of(config: DictConfig, source: object = None) -> Preparation:
    """Return how the networks of a configuration receive images; `source`: what says how image files are decoded."""
    transforms = plain(config.transforms)
    ends = getattr(source, "value_range", None)
    return Preparation(
        build(transforms["eval"]),
        getattr(source, "channels", None),
        None if ends is None else tuple(ends),
        transforms.get("window"),
        transforms["eval"],
    )


def open_data(config: DictConfig) -> tuple[RecordSource, Splits, NDArray[np.bool_]]:
    """Return the data of the configuration, its splits, and which records have gold."""
    source: RecordSource = build(config.data)
    infos = infos_of(source)
    splits: Splits = build(config.datamodule.split)(infos)
    if config.limit_images is not None:
        labelled = config.reference_training.images or config.reference_training.get("at_most") or 0
        splits = limited(splits, infos, config.limit_images, more=labelled)
    return source, splits, np.array([bool(info.gold) for info in infos], bool)


def check_class_count(config: DictConfig, network: str, classes: Sequence[str]) -> None:
    """Refuse a network, `model` or `reward_model`, that is configured for other classes than those of the data."""
    wanted = config[network].classes
    if wanted is not None and wanted != len(classes):
        raise ValueError(
            f"Expected {network}.classes={len(classes)} for the classes of the data ({', '.join(classes)}) but got "
            f"{wanted}; leave {network}.classes=null, or choose the data that this model is for."
        )


def quieten() -> None:
    """Hide messages of libraries that say nothing about the run: advertisements, missing devices, internals."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")
    # Loaders without workers are right for small images; docs/howto/several_gpus.md says when they are not.
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    # Few images have few batches; metrics are logged every so many steps, whatever the epoch.
    warnings.filterwarnings("ignore", message=r".*is smaller than the logging interval.*")


# Options that change no number of a run; of default_beta, the entry that is used is `beta`.
WITHOUT_EFFECT = ("run_folder", "threads", "jobs", "cache", "resume", "resume_force", "logger", "default_beta")
WATCHING = ("callbacks.progress.", "callbacks.panels.", "callbacks.displacement.", "callbacks.resume_hint.")
SHOWN = 6


def finished(config: DictConfig) -> Figures | None:
    """Return the summary of this very run if its folder holds one, and None if the run has to be run.

    With `resume=…` a finished run is continued, with other values such as more steps: nothing is compared. In a sweep
    resume=last resumes the sweep, whose finished runs stay as they are.

    Raises:
        ValueError: the folder holds another finished run; the message names the values that differ.
    """
    folder = Path(config.run_folder)
    summary, kept = folder / "summary.json", folder / "config.yaml"
    continued = config.resume is not None and not in_sweep()
    if continued or not (summary.exists() and kept.exists()):
        return None
    now = plain(OmegaConf.create(OmegaConf.to_yaml(config, resolve=True)))
    changed = differences(current_config(read_config(kept)), now)
    if changed:
        more = f" and {len(changed) - SHOWN} more" if len(changed) > SHOWN else ""
        raise ValueError(
            f"Expected {folder} to be empty, or to hold this run, but it holds a finished run with other values of "
            f"{'; '.join(changed[:SHOWN])}{more}. Choose another hydra.run.dir (of a sweep: hydra.sweep.dir), or "
            "remove that folder; resume=last trains a finished run for more steps."
        )
    log.info("Finished already, and not run again: %s", folder)
    return cast(Figures, parse_json(read_file(summary), str(summary)))


def differences(before: Plain, now: Plain) -> list[str]:
    """Return the values in which two configurations differ, as "key (before → now)"; folders do not count.

    >>> differences({"seed": 0, "threads": 1, "run_folder": "a"}, {"seed": 1, "threads": 2, "run_folder": "b"})
    ['seed (0 → 1)']
    """
    old, new = _comparable(before), _comparable(now)
    keys = [*old, *(key for key in new if key not in old)]
    none = "nothing"
    changed = [key for key in keys if old.get(key, repr(None)) != new.get(key, repr(None))]  # null: as if not there
    return [f"{key} ({old.get(key, none)} → {new.get(key, none)})" for key in changed]


def _comparable(config: Plain) -> dict[str, str]:
    """Return the values that count, as text: the run's own folders by their names, so that a run may be moved."""
    folders = {str(config[key]): key for key in ("run_folder", "cache") if config.get(key)}
    kept = {key: value for key, value in config.items() if key not in WITHOUT_EFFECT}
    if str((kept.get("questions") or {}).get("_target_")).endswith(".answered"):
        kept.pop("candidates", None)  # nothing is asked about them
    found = {}
    for key, value in leaves(kept):
        name, text = current_option(key), repr(value)
        for folder, role in folders.items():
            text = text.replace(folder, role)
        if name.endswith("_target_"):
            text = repr(current_name(str(value)))
        if name not in REMOVED_OPTIONS and not name.startswith(WATCHING):
            found[name] = text
    return found


STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
PEAK = "VmHWM:"


def reset_peak() -> None:
    """Reset the peak of this process's memory where the system can: jobs of a sweep may share a process."""
    with contextlib.suppress(OSError):
        CLEAR.write_text("5")


def peak_mib() -> float:
    """Return the peak of this process's resident memory in MiB since `reset_peak`, or since its start; NaN: unknown."""
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


def _threads_of(config: DictConfig) -> int:
    """Return the CPU threads of this job: jobs of a sweep that run side by side share the cores."""
    side_by_side = config.jobs if in_sweep() else 1
    return int(config.threads or max(1, (os.cpu_count() or 1) // side_by_side))


# In summary.json these names are those of measurements.
MEASURED = ("reference",)


def _choices() -> dict[str, Any]:
    """Return the choice of each group, as Hydra has it, and the overrides."""
    if not HydraConfig.initialized():
        return {}
    choices = HydraConfig.get().runtime.choices
    chosen = {group: choices[group] for group in choices if not group.startswith("hydra/") and "@" not in group}
    chosen = {group: choice for group, choice in chosen.items() if group not in MEASURED}
    # .hydra/overrides.yaml is overwritten before a run can refuse its folder, so that these are kept with the summary.
    return {**chosen, "overrides": list(HydraConfig.get().overrides.task)}


def _versions() -> dict[str, str]:
    """Return versions that the numbers may depend on."""
    libraries = {name: metadata.version(name) for name in ("torch", "lightning", "albumentations")}
    return {"segdpo": segdpo.__version__, "python": platform.python_version(), **libraries}


def _show(folder: Path, summary: Mapping[str, Any]) -> None:
    """Draw the curves and print the table."""
    console = Console()
    if (folder / "metrics.csv").exists():
        before = summary.get("validation", {}).get("reference", {}).get("iou", {}).get("mean")
        draw_curves(folder / "metrics.csv", folder / "curves.png", reference_iou=before)
    console.print(comparison_table(summary))
    console.print(f"run folder: {folder}", soft_wrap=True)
