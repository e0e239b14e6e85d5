"""A run that is there already is not run again: what lets a sweep that was stopped go on with the same command."""

import json
import logging
from pathlib import Path
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf

from segdpo.story.configs import Plain, leaves, plain, read_config

log = logging.getLogger(__name__)

# What changes no number of a run.
PASSING = ("run_folder", "threads", "jobs", "cache", "ckpt_path", "logger")
SHOWN = 6


def finished(config: DictConfig) -> Plain | None:
    """Return the summary of the same run, if its folder holds one; refuse a folder that holds another run.

    A run that goes on from a checkpoint was finished with other values, such as fewer steps: it is not looked at.
    """
    folder = Path(config.run_folder)
    summary, kept = folder / "summary.json", folder / "config.yaml"
    if config.ckpt_path is not None or not (summary.exists() and kept.exists()):
        return None
    changed = differing(read_config(kept), plain(OmegaConf.create(OmegaConf.to_yaml(config, resolve=True))))
    if changed:
        more = f" and {len(changed) - SHOWN} more" if len(changed) > SHOWN else ""
        raise ValueError(
            f"Expected {folder} to be free, or to hold this very run, but it holds a finished one with other values of "
            f"{'; '.join(changed[:SHOWN])}{more}. Choose another hydra.run.dir (of a sweep: hydra.sweep.dir), or "
            "remove that folder; ckpt_path=last makes a finished run longer."
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
