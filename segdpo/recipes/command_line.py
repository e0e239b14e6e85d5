"""The command line of Hydra applications: errors as messages, options that do not exist."""

import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any

import hydra
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import CompactHydraException, ConfigCompositionException, MissingConfigException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

import segdpo
from segdpo.extras import extra_of
from segdpo.files import conf_folder
from segdpo.guard import Ended, errors_as_lines
from segdpo.recipes.sweep_folder import in_sweep
from segdpo.renamed import current_words

WITH_VALUE = re.compile(r"~|[^-].*?=")
# Flags of Hydra that a word follows, by their short names.
WITH_WORD = {
    "-c": "--cfg",
    "-p": "--package",
    "-cp": "--config-path",
    "-cn": "--config-name",
    "-cd": "--config-dir",
    "--experimental-rerun": "--experimental-rerun",
}
# Launchers of cluster=…, by the beginning of the file that Hydra does not find.
PLUGINS = {"hydra/launcher/submitit": "hydra_submitit_launcher", "hydra/launcher/ray": "hydra_ray_launcher"}
UNKNOWN_OPTION = re.compile(r"Could not (?:override|delete).*?'([^']+)'")


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
        with command_line(sys.argv[1:]), _errors_of_job():
            return task(config)

    application = hydra.main(config_path=str(folder), config_name=name, version_base="1.3")(job)
    words = in_order(current_words(words))
    with command_line(words, f"segdpo {name}"):
        try:
            application()
        except SystemExit as stop:
            if stop.code == 1:
                print(existing_options(words, name), end="", file=sys.stderr)
            raise


@contextmanager
def command_line(words: Sequence[str], program: str | None = None) -> Iterator[None]:
    """Let `sys.argv` be a command: Hydra reads its words, and Lightning starts the processes of trainer=ddp with it.

    Args:
        words: what is typed after the program.
        program: its name in messages; None: a file that Python can run. The train.py of a checkout stays in both cases.
    """
    before, package = sys.argv, Path(segdpo.__file__).resolve().parent
    program = program or str(package / "ddp_process.py")
    sys.argv = [before[0] if Path(before[0]).resolve() == package.parent / "train.py" else program, *words]
    try:
        yield
    finally:
        sys.argv = before


@contextmanager
def _errors_of_job() -> Iterator[None]:
    """End with the line of an error, which Hydra would print with half of its traceback.

    In a sweep Hydra continues with the other jobs, and ends with the line of the first error.
    """
    try:
        with errors_as_lines():
            yield
    except Ended as ended:
        if not in_sweep():
            raise
        raise CompactHydraException(str(ended)) from ended.__cause__


def in_order(words: Sequence[str]) -> list[str]:
    """Return a command line with its flags first: Hydra reads no options on both sides of a flag.

    The folder of --config-path is that of the current folder; Hydra would take that of a module of segdpo.

    >>> in_order(["loss=dpo", "--config-dir", "own", "seed=0,1", "-m"])
    ['--config-dir=own', '-m', 'loss=dpo', 'seed=0,1']
    """
    flags, rest, remaining = [], [], iter(words)
    for word in remaining:
        name, sign, value = word.partition("=")
        name = WITH_WORD.get(name, name)
        if not word.startswith("-"):
            rest.append(word)
        elif name in WITH_WORD.values():
            value = value if sign else next(remaining, "")
            is_path = name == "--config-path" and "://" not in value
            flags.append(f"{name}={Path.cwd() / value if is_path else value}")
        elif name in ("-i", "--info"):  # may have a value, so that it is last
            rest += [word, *remaining]
        else:
            flags.append(word)
    return [*flags, *rest]


def search_path(folder: str | Path) -> str:
    """Return the option that adds a folder to the configuration, as --config-dir does on the command line."""
    from segdpo.data import override  # which imports torch

    return override("hydra.searchpath", [f"file://{Path(folder).absolute()}"])


def existing_options(words: Sequence[str], name: str) -> str:
    """Return the options beside the first one that does not exist, or the plugin to install; "" if all exist.

    Hydra names that option and has ended by now, so the configuration is composed again.

    Args:
        words: the command line.
        name: the main configuration, without .yaml.
    """
    overrides = [word for word in words if WITH_VALUE.match(word)]
    folders = [word.partition("=")[2] for word in words if word.startswith("--config-dir=")]
    overrides += [search_path(folder) for folder in folders]
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        try:
            _compose(name, overrides)
        except MissingConfigException as error:
            return _plugin_of(str(error.missing_cfg_file))
        except ConfigCompositionException as error:
            found = UNKNOWN_OPTION.search(str(error))
            rest = [word for word in overrides if found and found[1] not in word]
            return _listing(_compose(name, rest), found[1]) if found and len(rest) < len(overrides) else ""
    return ""


def _compose(name: str, overrides: Sequence[str]) -> DictConfig:
    """Compose as for a sweep, so that an option may have several values."""
    loader = GlobalHydra.instance().config_loader()
    return loader.load_configuration(name, list(overrides), RunMode.MULTIRUN, validate_sweep_overrides=False)


def _plugin_of(choice: str) -> str:
    """Return how to install the plugin of a launcher; "" for other choices."""
    plugin = next((plugin for start, plugin in PLUGINS.items() if choice.startswith(start)), None)
    if plugin is None:
        return ""
    extra = extra_of(plugin)
    package = f"'segdpo[{extra}]'" if extra else plugin.replace("_", "-")
    return f"\nThis launcher is a plugin of Hydra, which is not installed; run pip install {package}.\n"


def _listing(config: DictConfig, unknown: str) -> str:
    """Return the keys of the nearest parent of an unknown key."""
    parts = unknown.split(".")
    for end in range(len(parts) - 1, -1, -1):
        parent = ".".join(parts[:end])
        node = OmegaConf.select(config, parent) if parent else config
        if isinstance(node, DictConfig):
            keys = sorted(str(key) for key in node if key != "hydra" and not str(key).startswith("_"))
            return f"\n{parent or 'The configuration'} has: {', '.join(keys)}\n"
    return ""
