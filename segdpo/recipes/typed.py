"""What was typed: the choice of a group, and the command with some options changed, for messages."""

import shlex
import sys
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig


def command_with(*changes: str) -> str:
    """Return the command of this run with some options changed, as a line to paste.

    An option `group=choice` takes the place of the group's choice and of all options in it.
    """
    words = list(HydraConfig.get().overrides.task) if HydraConfig.initialized() else []
    words += [one for one in _hydra_words() if not one.startswith("hydra.mode=")]
    kept = [word for word in words if not any(_replaces(change, word) for change in changes)]
    program = ["python", "train.py"] if Path(sys.argv[0]).name == "train.py" else ["segdpo", "train"]
    return shlex.join([*program, *kept, *changes, *_config_dirs()])


def choice_of(config: DictConfig, group: str) -> str:
    """Return "group=choice" as typed or by default; without Hydra, the group and the name of what it builds."""
    if HydraConfig.initialized() and group in HydraConfig.get().runtime.choices:
        return f"{group}={HydraConfig.get().runtime.choices[group]}"
    return f"{group}={target.rpartition('.')[2]}" if (target := config[group].get("_target_")) else group


def _hydra_words() -> list[str]:
    return list(HydraConfig.get().overrides.hydra) if HydraConfig.initialized() else []


def _config_dirs() -> list[str]:
    sources = HydraConfig.get().runtime.config_sources if HydraConfig.initialized() else []
    own = [one.path for one in sources if one.provider == "command-line"]
    return [word for path in own for word in ("--config-dir", path)]


def _replaces(change: str, word: str) -> bool:
    key, old = change.partition("=")[0], word.lstrip("+~").partition("=")[0]
    return old == key or old.startswith((f"{key}.", f"{key}@{key}"))
