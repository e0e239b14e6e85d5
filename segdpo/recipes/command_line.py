"""The command line of Hydra applications: names of sweep folders, errors as messages, options that do not exist."""

import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import ConfigCompositionException, InstantiationException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from segdpo.renamed import current_words

EXPECTED_ERRORS = (ValueError, TypeError, KeyError, OSError, InstantiationException, OmegaConfBaseException)
UNSAFE, LONGEST = re.compile(r"[^A-Za-z0-9._=+-]"), 120
UNKNOWN_OPTION = re.compile(r"Could not (?:override|delete).*?'([^']+)'")


def run_application(main: Callable[[], object], folder: Path, name: str) -> None:
    """Run a function that is decorated with `hydra.main`.

    Old names of options are replaced in `sys.argv` first. If the command stops at an option that does not exist, those
    that do are listed.

    Args:
        main: the application.
        folder: its configuration folder.
        name: its main configuration, without .yaml.
    """
    with errors_as_messages():
        sys.argv[1:] = current_words(sys.argv[1:])
    try:
        main()
    except SystemExit as stop:
        if stop.code == 1:
            print(_existing_options(sys.argv[1:], folder, name), end="", file=sys.stderr)
        raise


@contextmanager
def errors_as_messages() -> Iterator[None]:
    """End with the message of an error alone and status 1; with HYDRA_FULL_ERROR=1, and in sweeps, raise the error."""
    try:
        yield
    except EXPECTED_ERRORS as error:
        sweeps = HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN
        # In a sweep Hydra continues with the other jobs and reports this one.
        if sweeps or os.environ.get("HYDRA_FULL_ERROR") == "1":
            raise
        message = error.args[0] if isinstance(error, KeyError) and error.args else error
        sys.exit(f"\n{type(error).__name__}: {message}\n(HYDRA_FULL_ERROR=1 shows the traceback.)")


def run_name(overrides: str) -> str:
    """Return the folder name of a sweep's run: without "/", short, and different for different overrides.

    >>> run_name("loss=dpo__seed=0")
    'loss=dpo__seed=0'
    >>> run_name("experiment/variant=sft__seed=0")
    'variant=sft__seed=0'
    >>> run_name("datamodule/split=folds")
    'datamodule-split=folds-34108c1c'
    """
    overrides = overrides.replace("experiment/variant=", "variant=")
    name = UNSAFE.sub("-", overrides)
    if name == overrides and len(name) <= LONGEST:
        return name or "default"
    return f"{name[:LONGEST]}-{sha256(overrides.encode()).hexdigest()[:8]}"


# conf/train.yaml uses ${run_name:…}; processes that a launcher starts import this module too.
OmegaConf.register_new_resolver("run_name", run_name, replace=True)


def _existing_options(words: Sequence[str], folder: Path, name: str) -> str:
    """Return the options beside the first one that does not exist; "" if all exist.

    Hydra names that option and has ended by now, so the configuration is composed again.
    """
    overrides = [word for word in words if "=" in word or word.startswith("~")]
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(folder.resolve()), version_base="1.3"):
        try:
            compose(name, overrides=overrides)
        except ConfigCompositionException as error:
            found = UNKNOWN_OPTION.search(str(error))
            rest = [word for word in overrides if found and found[1] not in word]
            return _listing(compose(name, overrides=rest), found[1]) if found and len(rest) < len(overrides) else ""
    return ""


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
