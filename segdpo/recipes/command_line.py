"""The command line of Hydra applications: errors as messages, options that do not exist."""

import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import ConfigCompositionException, InstantiationException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from segdpo.recipes.sweep_folder import in_sweep
from segdpo.renamed import current_words

EXPECTED_ERRORS = (ValueError, TypeError, KeyError, OSError, InstantiationException, OmegaConfBaseException)
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
        # In a sweep Hydra continues with the other jobs and reports this one.
        if in_sweep() or os.environ.get("HYDRA_FULL_ERROR") == "1":
            raise
        message = error.args[0] if isinstance(error, KeyError) and error.args else error
        sys.exit(f"\n{type(error).__name__}: {message}\n(HYDRA_FULL_ERROR=1 shows the traceback.)")


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
