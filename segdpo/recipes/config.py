"""From yaml to objects, and errors of the configuration."""

import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import ConfigCompositionException, InstantiationException
from hydra.types import RunMode
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

import segdpo
from segdpo.models import check_resolvers, check_targets, without_interpolations

Plain = dict[str, Any]
MISSING = "???"


def plain(node: Any) -> Any:
    """Return a node of the configuration as plain dicts and lists, every ${…} filled in."""
    return OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node


def build(node: Any, **given: Any) -> Any:
    """Instantiate a node; `given` are arguments of its target that no yaml can say, such as a network.

    They are bound after Hydra has built the rest, since Hydra would take a dataclass among them apart.
    """
    content = check_targets(plain(node))
    if not given:
        return instantiate(content, _convert_="all")
    rest = {key: value for key, value in content.items() if key not in given}
    return instantiate(rest, _convert_="all", _partial_=True)(**given)


def read_config(path: Path) -> Plain:
    """Return the config.yaml of a run as plain dicts and lists; it is written with every ${…} filled in."""
    try:
        text = path.read_text(encoding="utf-8")
        # Twenty lines of aliases of aliases are gigabytes; OmegaConf writes none.
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, Loader=yaml.SafeLoader)):
            raise ValueError("it has an alias (*name), which no run writes")
        content = OmegaConf.to_container(OmegaConf.create(text), resolve=False)
    # The reader of YAML raises classes of its own, by kind of damage.
    except Exception as error:
        raise ValueError(f"{path}: cannot be read ({error}); run that run again, or choose data=… anew.") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: Expected the configuration of a run but got a {type(content).__name__}.")
    found: Plain = without_interpolations(content, path)
    return found


def check_at_start(config: DictConfig) -> None:
    """Fill in every ${…} and import every target, so that a misspelt name stops here rather than after an hour."""
    check_resolvers(config)
    check_beta(config)
    whole = plain(config)
    for name, value in leaves(whole):
        # A source of masks that names no weights asks the reference, which is not there yet.
        if value == MISSING and not name.startswith(("candidates.", "selection.")):
            raise ValueError(f"Expected a value for {name} but the configuration has none; set {name}=…")
    for key in ("loss", "optimizer", "scheduler", "beta_schedule", "reference", "adapter", "judge", "questions"):
        if whole.get(key):
            build(whole[key])


def check_beta(config: DictConfig) -> None:
    """Raise an error for a score that `default_beta` of conf/train.yaml does not know, unless beta is given."""
    try:
        config.get("beta")
    except OmegaConfBaseException as error:
        raise ValueError(
            "Expected beta=NUMBER with this score, since default_beta in conf/train.yaml has no entry for it, but got "
            f"score={plain(config.score)}."
        ) from error


def key_for(config: DictConfig, names: Sequence[str], **own: Any) -> str:
    """Name what is made of these nodes of the configuration, the data among them, of `own`, and by this software.

    The data's files count by name, size and time, so that changed data is other data.
    """
    import torch  # here, so that `--help` does not import it

    content = {name: plain(config[name]) for name in ("data", *names)}
    versions = (segdpo.__version__, torch.__version__)
    return key_of({**content, **own, "versions": versions, "files": stamp_of_files(content["data"])})


def key_of(content: Mapping[str, Any]) -> str:
    """Return a name for this content: equal content, equal name, in any order of keys."""
    return sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:16]


def stamp_of_files(data: Any) -> str:
    """Return what changes when a file of the data set changes: names, sizes and times of all files it points to."""
    stamps = []
    for name, value in leaves(data):
        if isinstance(value, str) and value:
            stamps += [
                f"{file} {file.stat().st_size} {file.stat().st_mtime_ns}" for file in _files_of(name, Path(value))
            ]
    return sha256("\n".join(stamps).encode()).hexdigest()[:16]


def _files_of(name: str, path: Path) -> list[Path]:
    """Return the files that a value of this name points to, what links lead to included.

    A word that happens to be a folder here is a choice rather than a path (`masks`), unless its name says otherwise;
    the working directory itself and what holds it would be everything.
    """
    if path.is_file():
        return [path]
    is_path = len(path.parts) > 1 or name.rpartition(".")[2] in ("root", "path", "folder")
    if not is_path or not path.is_dir() or Path.cwd().is_relative_to(path.resolve()):
        return []
    found = (Path(folder, file) for folder, _, files in os.walk(path, followlinks=True) for file in files)
    return sorted(file for file in found if file.is_file())


def leaves(content: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every value that is no dict and no list, with its dotted name."""
    if isinstance(content, dict | list):
        for key, part in content.items() if isinstance(content, dict) else enumerate(content):
            yield from leaves(part, f"{name}.{key}" if name else str(key))
    else:
        yield name, content


LONGEST = 120
UNSAFE = re.compile(r"[^A-Za-z0-9._=+-]")


def run_name(overrides: str) -> str:
    """Return a folder's name for the overrides: short, without "/", and different for different ones.

    >>> run_name("loss=dpo__seed=0")
    'loss=dpo__seed=0'
    >>> run_name("datamodule/split=folds")
    'datamodule-split=folds-34108c1c'
    """
    name = UNSAFE.sub("-", overrides)
    if name == overrides and len(name) <= LONGEST:
        return name or "default"
    return f"{name[:LONGEST]}-{sha256(overrides.encode()).hexdigest()[:8]}"


# Importing this is what lets conf/train.yaml say ${run_name:…}, also in the processes that a launcher starts.
OmegaConf.register_new_resolver("run_name", run_name, replace=True)


FORESEEN = (ValueError, TypeError, KeyError, OSError, InstantiationException, OmegaConfBaseException)


@contextmanager
def in_words() -> Iterator[None]:
    """End with the message alone, status 1; HYDRA_FULL_ERROR=1 shows where it came from."""
    try:
        yield
    except FORESEEN as error:
        # A sweep goes on with its other jobs, and Hydra reports this one.
        if os.environ.get("HYDRA_FULL_ERROR") == "1" or HydraConfig.get().mode == RunMode.MULTIRUN:
            raise
        said = error.args[0] if isinstance(error, KeyError) and error.args else error
        sys.exit(f"\n{type(error).__name__}: {said}\n(HYDRA_FULL_ERROR=1 shows where this came from.)")


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
