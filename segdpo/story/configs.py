"""From yaml to objects: the only place, beside train.py and the scripts, where Hydra builds things."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
import yaml  # type: ignore[import-untyped]
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

import segdpo
from segdpo.models.trust import check_resolvers, check_targets, without_interpolations

Plain = dict[str, Any]
MISSING = "???"


def plain(node: Any) -> Any:
    """Return a node of the configuration as plain dicts and lists, every ${…} filled in."""
    return OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node


def build(node: Any, **given: Any) -> Any:
    """Instantiate a node; `given` are arguments of its target that no yaml can say, such as a network.

    They are bound after Hydra has built the rest, since Hydra would take a dataclass among them apart.
    """
    content = plain(node)
    check_targets(content)
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
    whole = plain(config)
    for name, value in leaves(whole):
        # A source of masks that names no weights asks the reference, which is not there yet.
        if value == MISSING and not name.startswith(("pairs.", "selection.")):
            raise ValueError(f"Expected a value for {name} but the configuration has none; set {name}=…")
    for key in ("loss", "optimizer", "scheduler", "beta_schedule", "reference", "adapter", "judge", "rule"):
        if whole.get(key):
            build(whole[key])


def key_for(config: DictConfig, names: Sequence[str], **own: Any) -> str:
    """Name what is made of these nodes of the configuration, the data among them, of `own`, and by this software.

    The data's files count by name, size and time, so that changed data is other data.
    """
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
