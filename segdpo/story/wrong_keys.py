"""A misspelt option: what there is instead of it."""

import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import ConfigCompositionException
from omegaconf import DictConfig, OmegaConf

UNKNOWN = re.compile(r"Could not (?:override|delete).*?'([^']+)'")


def with_choices(main: Callable[[], object], folder: Path, name: str) -> None:
    """Run a Hydra application; if it stops at an option that is not there, list those that are."""
    try:
        main()
    except SystemExit as stop:
        if stop.code == 1:
            print(choices_instead(sys.argv[1:], folder, name), end="", file=sys.stderr)
        raise


def choices_instead(words: Sequence[str], folder: Path, name: str) -> str:
    """Return what there is where the first unknown option was looked for; nothing if no option is unknown.

    Hydra names the option that it does not know, and has ended by then: composing again is cheap where it failed.
    """
    overrides = [word for word in words if "=" in word or word.startswith("~")]
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(folder.resolve()), version_base="1.3"):
        try:
            compose(name, overrides=overrides)
        except ConfigCompositionException as error:
            found = UNKNOWN.search(str(error))
            rest = [word for word in overrides if found and found[1] not in word]
            return _listing(compose(name, overrides=rest), found[1]) if found and len(rest) < len(overrides) else ""
    return ""


def _listing(config: DictConfig, unknown: str) -> str:
    parts = unknown.split(".")
    for end in range(len(parts) - 1, -1, -1):
        parent = ".".join(parts[:end])
        node = OmegaConf.select(config, parent) if parent else config
        if isinstance(node, DictConfig):
            keys = sorted(str(key) for key in node if not str(key).startswith("_"))
            return f"\n{parent or 'The configuration'} has: {', '.join(keys)}\n"
    return ""
