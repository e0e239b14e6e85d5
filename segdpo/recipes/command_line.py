"""The command line of Hydra applications: errors as messages, options that do not exist."""

import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any

import hydra
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import ConfigCompositionException, InstantiationException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

import segdpo
from segdpo.extras import missing_extra
from segdpo.recipes.sweep_folder import in_sweep
from segdpo.renamed import current_words

EXPECTED_ERRORS = (ValueError, TypeError, KeyError, OSError, InstantiationException, OmegaConfBaseException)
WITH_VALUE = re.compile(r"~|[^-].*?=")
UNKNOWN_OPTION = re.compile(r"Could not (?:override|delete).*?'([^']+)'")


def conf_folder() -> Path:
    """Return the folder of the configuration: in the installed package, or conf/ beside the package in a checkout."""
    package = Path(segdpo.__file__).resolve().parent
    places = (package / "conf", package.parent / "conf")
    for folder in places:
        if (folder / "train.yaml").is_file():
            return folder
    raise FileNotFoundError(
        f"Expected the configuration in {' or '.join(map(str, places))} but found none; install segdpo again."
    )


def run_application(name: str, task: Callable[[DictConfig], Any], words: Sequence[str]) -> None:
    """Run a task as a Hydra application on conf/NAME.yaml.

    Old names of options are replaced. If the command stops at an option that does not exist, those that do are listed.

    Args:
        name: the main configuration, without .yaml.
        task: called with the whole configuration.
        words: the command line, without the program.
    """
    folder = conf_folder()

    @wraps(task)
    def job(config: DictConfig) -> Any:
        with errors_as_messages():
            return task(config)

    application = hydra.main(config_path=str(folder), config_name=name, version_base="1.3")(job)
    with errors_as_messages():
        words = _with_absolute_config_path(current_words(words))
    with command_line(words):
        try:
            application()
        except SystemExit as stop:
            if stop.code == 1:
                print(existing_options(words, name), end="", file=sys.stderr)
            raise


@contextmanager
def command_line(words: Sequence[str]) -> Iterator[None]:
    """Let `sys.argv` be a command that Lightning can start again, for the further processes of trainer=ddp.

    Hydra reads the options there, too.
    """
    before = sys.argv
    script = before[0] if Path(before[0]).name == "train.py" else str(Path(segdpo.__file__).with_name("ddp_process.py"))
    sys.argv = [script, *words]
    try:
        yield
    finally:
        sys.argv = before


@contextmanager
def errors_as_messages() -> Iterator[None]:
    """End with the message of an error alone and status 1; with HYDRA_FULL_ERROR=1, and in sweeps, raise the error."""
    try:
        yield
    except (*EXPECTED_ERRORS, ModuleNotFoundError) as error:
        # In a sweep Hydra continues with the other jobs and reports this one.
        if in_sweep() or os.environ.get("HYDRA_FULL_ERROR") == "1":
            raise
        if said := missing_extra(error):
            sys.exit(said)
        if isinstance(error, ModuleNotFoundError):
            raise
        message = error.args[0] if isinstance(error, KeyError) and error.args else error
        sys.exit(f"\n{type(error).__name__}: {message}\n(HYDRA_FULL_ERROR=1 shows the traceback.)")


def _with_absolute_config_path(words: Sequence[str]) -> list[str]:
    """Return the words with --config-path from the current folder; Hydra would take that of a module of segdpo."""
    found, flags = [], ("-cp", "--config-path")
    for before, word in zip(("", *words), words, strict=False):
        flag, sign, value = word.partition("=") if word.startswith("--") else ("", "", word)
        is_path = before in flags or (flag in flags and sign)
        found.append(f"{flag}{sign}{Path.cwd() / value}" if is_path and "://" not in value else word)
    return found


def search_path(folder: str | Path) -> str:
    """Return the option that adds a folder to the configuration, as --config-dir does on the command line."""
    from segdpo.data import override  # which imports torch

    return override("hydra.searchpath", [f"file://{Path(folder).absolute()}"])


def existing_options(words: Sequence[str], name: str) -> str:
    """Return the options beside the first one that does not exist; "" if all exist.

    Hydra names that option and has ended by now, so the configuration is composed again.

    Args:
        words: the command line.
        name: the main configuration, without .yaml.
    """
    overrides = [word for word in words if WITH_VALUE.match(word)]
    overrides += [search_path(folder) for folder in _config_dirs(words)]
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        try:
            compose(name, overrides=overrides)
        except ConfigCompositionException as error:
            found = UNKNOWN_OPTION.search(str(error))
            rest = [word for word in overrides if found and found[1] not in word]
            return _listing(compose(name, overrides=rest), found[1]) if found and len(rest) < len(overrides) else ""
    return ""


def _config_dirs(words: Sequence[str]) -> list[str]:
    """Return the values of --config-dir on a command line."""
    return [
        word.partition("=")[2] or after
        for word, after in zip(words, (*words[1:], ""), strict=True)
        if word in ("-cd", "--config-dir") or word.startswith("--config-dir=")
    ]


def _listing(config: DictConfig, unknown: str) -> str:
    """Return the keys of the nearest parent of an unknown key."""
    parts = unknown.split(".")
    for end in range(len(parts) - 1, -1, -1):
        parent = ".".join(parts[:end])
        node = OmegaConf.select(config, parent) if parent else config
        if isinstance(node, DictConfig):
            keys = sorted(str(key) for key in node if not str(key).startswith("_"))
            return f"\n{parent or 'The configuration'} has: {', '.join(keys)}\n"
    return ""
