"""`segdpo.train`: what the command `segdpo train` does, from Python."""

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import ConfigCompositionException
from omegaconf import DictConfig
from rich.table import Table

from segdpo.data import override
from segdpo.files import conf_folder
from segdpo.inference import TrainedSegmenter, load
from segdpo.recipes.command_line import command_line, existing_options, search_path
from segdpo.recipes.run import run_recipe
from segdpo.renamed import current_words
from segdpo.reports import comparison_table


@dataclass(frozen=True, eq=False)
class Summary:
    """What a run wrote and measured.

    Attributes:
        folder: of the run.
        measured: what its summary.json holds.
    """

    folder: Path
    measured: Mapping[str, Any]

    @property
    def table(self) -> Table:
        """The comparison of the policy with the reference, for `rich.print` or a notebook."""
        return comparison_table(self.measured)

    @cached_property
    def policy(self) -> TrainedSegmenter:
        """The network of policy.safetensors; one of your own package needs `segdpo.load(folder, trusted=[…])`."""
        return load(self.folder)


def train(*overrides: str, config_dir: str | Path | None = None, **options: Any) -> Summary:
    """Train as `segdpo train` does, with its progress and its files, and return what it found.

    Args:
        overrides: as on the command line, such as "trainer.max_steps=10"; not of a sweep.
        config_dir: a folder of yaml files like conf/, which adds choices: its data/cells.yaml is data="cells".
        options: the same as keywords, with values of Python: loss="dpo", seed=1, freeze=["network.encoder*"].

    Raises:
        HydraException: an option does not exist, or has no such choice; a note lists those that exist.
        ValueError: where the command ends with a message.
        ModuleNotFoundError: a package is not installed; the message names the extra.
    """
    words = current_words([*overrides, *(override(key, value) for key, value in options.items())])
    if config_dir is not None:
        words.append(search_path(config_dir))
    with _as_before(), initialize_config_dir(str(conf_folder()), version_base="1.3"), command_line(words):
        hydra = GlobalHydra.instance().hydra
        assert hydra is not None
        try:
            folder, measured = hydra.run("train", _run, words).return_value
        except SystemExit as stop:
            if isinstance(stop.code, str):  # what the command would print
                raise ValueError(stop.code) from stop
            raise
        except ConfigCompositionException as error:
            error.add_note(existing_options(words, "train"))
            raise
    return Summary(folder, measured)


def _run(config: DictConfig) -> tuple[Path, dict[str, Any]]:
    return Path(config.run_folder), run_recipe(config)


@contextmanager
def _as_before() -> Iterator[None]:
    """Restore, at the end, what a run changes in its process: Hydra, logging, warnings, and switches of torch."""
    logs = [logging.getLogger(), logging.getLogger("lightning.pytorch")]
    levels, handlers = [log.level for log in logs], list(logs[0].handlers)
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    outer = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        with warnings.catch_warnings():
            yield
    finally:
        GlobalHydra.instance().hydra = outer
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
        for handler in set(logs[0].handlers) - set(handlers):
            handler.close()
        logs[0].handlers[:] = handlers
        for log, level in zip(logs, levels, strict=True):
            log.setLevel(level)
