"""From the configuration to objects, and names for files that depend on it."""

import json
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

import segdpo
from segdpo.files import read_file
from segdpo.models import check_resolvers, check_targets, without_interpolations

Plain = dict[str, Any]
MISSING = "???"
# A run writes some kB; PyYAML takes more than ten seconds for 1 MB.
MAX_CONFIG_BYTES = 2**20
# Parts that are built once before the run starts, so that an error in one of them is reported at once.
CHECKED_PARTS = ("loss", "optimizer", "scheduler", "beta_schedule", "reference", "adapter", "judge", "questions")


def plain(node: Any) -> Any:
    """Return a node of the configuration as dicts and lists, with every ${…} replaced by its value."""
    return OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node


def build(node: Any, **given: Any) -> Any:
    """Build the object that a node of the configuration describes.

    Args:
        node: a node with a `_target_`.
        **given: further arguments of the target that yaml cannot express, such as a network. They are bound after Hydra
            has built the rest, since Hydra would convert a dataclass among them to a dict.
    """
    content = check_targets(plain(node))
    if not given:
        return instantiate(content, _convert_="all")
    rest = {key: value for key, value in content.items() if key not in given}
    return instantiate(rest, _convert_="all", _partial_=True)(**given)


def function_of(built: Any) -> Any:
    """Return the function of a partial, and anything else as it is.

    >>> from functools import partial
    >>> function_of(partial(sorted, reverse=True)) is sorted
    True
    """
    return getattr(built, "func", built)


def check_at_start(config: DictConfig) -> None:
    """Resolve every ${…} and build the parts that need no data, so that a mistake is reported before training.

    Raises:
        ValueError: a value is missing, or a ${…} is not allowed.
    """
    check_resolvers(config)
    check_beta(config)
    whole = plain(config)
    for name, value in leaves(whole):
        if value == MISSING:
            raise ValueError(f"Expected a value for {name} but the configuration has none; set {name}=…")
    for key in CHECKED_PARTS:
        if whole.get(key):
            build(whole[key])


def read_config(path: Path) -> Plain:
    """Return the config.yaml of a run as dicts and lists.

    Raises:
        ValueError: the file is not the configuration of a run, or has a ${…}: runs write every value.
    """
    try:
        text = read_file(path, MAX_CONFIG_BYTES).decode()
        # A few lines of nested aliases expand to gigabytes; OmegaConf writes none.
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, Loader=yaml.SafeLoader)):
            raise ValueError("it has an alias (*name), which no run writes")
        content = OmegaConf.to_container(OmegaConf.create(text), resolve=False)
    # PyYAML raises many classes of exceptions.
    except Exception as error:
        raise ValueError(
            f"{path}: cannot be read ({error}); repeat that run, or choose the data with data=…"
        ) from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: Expected the configuration of a run but got a {type(content).__name__}.")
    found: Plain = without_interpolations(content, path)
    return found


def leaves(content: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every value that is neither dict nor list, with its dotted name.

    >>> list(leaves({"a": {"b": 1}, "c": [2]}))
    [('a.b', 1), ('c.0', 2)]
    """
    if isinstance(content, dict | list):
        for key, part in content.items() if isinstance(content, dict) else enumerate(content):
            yield from leaves(part, f"{name}.{key}" if name else str(key))
    else:
        yield name, content


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
    """Return a name for what is made from the data, these nodes of the configuration, `own`, and this software.

    The data's files count by name, size and time, so that changed data gives another name.
    """
    import torch  # here, so that `--help` does not import it

    content = {name: plain(config[name]) for name in ("data", *names)}
    versions = (segdpo.__version__, torch.__version__)
    return key_of({**content, **own, "versions": versions, "files": stamp_of_files(content["data"])})


def key_of(content: Mapping[str, Any]) -> str:
    """Return a name for this content: equal content, equal name, in any order of keys."""
    return sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:16]


def stamp_of_files(content: Any) -> str:
    """Return a hash of the names, sizes and times of all files that values of `content` are paths of."""
    stamps = []
    for name, value in leaves(content):
        if isinstance(value, str) and value:
            stamps += [f"{file} {found.st_size} {found.st_mtime_ns}" for file, found in _files_of(name, Path(value))]
    return sha256("\n".join(stamps).encode()).hexdigest()[:16]


def _files_of(name: str, path: Path) -> list[tuple[str, os.stat_result]]:
    """Return the files at a path and what the system says of each, links followed.

    A single word that happens to be a folder here is not a path (`masks`), unless the key says so (`root`); the working
    directory and its parents would be too many files.
    """
    if path.is_file():
        return [(str(path), path.stat())]
    is_path = len(path.parts) > 1 or name.rpartition(".")[2] in ("root", "path", "folder")
    if not is_path or not path.is_dir() or Path.cwd().is_relative_to(path.resolve()):
        return []
    found = (Path(folder, file) for folder, _, files in os.walk(path, followlinks=True) for file in files)
    # One call of the system for each file: there may be very many.
    stamped = [(str(file), _stat(file)) for file in sorted(found)]
    return [(file, of_file) for file, of_file in stamped if of_file is not None and stat.S_ISREG(of_file.st_mode)]


def _stat(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except OSError:  # a link to nowhere
        return None
