"""Build what a file names, if the file may name it: naming a target means calling it.

Three kinds of files, three rules:

- weights (their header): networks, `NETWORKS`; arguments are plain values that name no file, or further networks;
- the config.yaml of a run: data and eval transforms, `EVALUATION`; only data sources take paths, in marked parameters;
- a yaml that the user chose: any package, but nothing of the standard library and nothing of `DANGEROUS`.

`--trust PACKAGE` adds a package to the first two; docs/howto/predict.md documents the rules.
"""

import inspect
import math
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import lru_cache
from itertools import zip_longest
from pathlib import Path, PurePosixPath, PureWindowsPath
from types import ModuleType
from typing import Any

from hydra.utils import instantiate
from omegaconf import OmegaConf, grammar_parser
from torch.utils._python_dispatch import TorchDispatchMode

from segdpo.models.allowed import DANGEROUS, FETCHING, LOOKING_UP, NETWORKS, RESOLVERS, Table
from segdpo.models.targets import current_name, home_of, locate, steps_to, with_current_names

SPECIAL = ("_target_", "_partial_", "_args_", "_convert_", "_recursive_")
# Parameters by which networks download or read weights, with every "pretrained…"; the weights come from the file.
WEIGHTS = ("encoder_weights", "weights", "weights_backbone")
FETCHED = (*WEIGHTS, "checkpoint", "checkpoint_path", "ckpt_path", "cache_dir", "path_or_repo_id")
# Options that make a library run code, or read more than numbers from a file.
NEVER = (
    "attn_implementation",
    "auto_map",
    "experts_implementation",
    "quantization_config",
    "trust_remote_code",
    "use_kernels",
    "weights_only",
)
DEPTH, NESTING = 4, 16
# Numbers that a network may create beyond one for each byte of its file: buffers that are not saved.
ROOM = 2**24


class _AtMost(TorchDispatchMode):
    """Counts the numbers of all tensors that are created, and refuses those beyond `limit` before they take memory."""

    def __init__(self, limit: int) -> None:
        super().__init__()
        self.limit = self.left = limit

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # Functions that create a tensor from nothing take its size first.
        size = args[0] if args and isinstance(args[0], list | tuple) else ()
        if size and all(isinstance(length, int) for length in size):
            self.left -= math.prod(size)
        if self.left < 0:
            raise ValueError(f"Expected a network of at most {self.limit} numbers, by the size of its file.")
        return func(*args, **(kwargs or {}))


def build_named(config: Any, path: Path, where: str, *, table: Table = NETWORKS, trusted: Sequence[str] = ()) -> Any:
    """Build what a file names, after `checked`, whose arguments these are; refuse a network larger than the file."""
    content = checked(config, path, where, table=table, trusted=trusted)
    limit = path.stat().st_size + ROOM if path.is_file() and not trusted else None
    try:
        with nullcontext() if limit is None else _AtMost(limit):
            return instantiate(content, _convert_="all")
    except Exception as error:  # constructors may raise anything at unexpected arguments
        raise ValueError(f"{path}: {where} cannot be built from its description: {error}") from error


def checked(config: Any, path: Path, where: str, *, table: Table = NETWORKS, trusted: Sequence[str] = ()) -> Any:
    """Return plain values that name only targets of the table or of trusted packages; refuse everything else.

    Old names become today's, and arguments that would download or read weights become None.

    Args:
        config: content of the file: plain values, lists and dicts.
        path: the file, for messages.
        where: the key of `config` in that file, for messages.
        table: what may be named.
        trusted: packages that may be named too; arguments of what they define are not checked.
    """
    return _Reader(path, table, tuple(trusted)).value(config, where)


def check_targets(content: Any) -> Any:
    """Refuse, in a user's yaml that is filled in, the standard library and functions that run text.

    Returns:
        The content with today's names in the place of those of earlier versions.
    """
    content = with_current_names(content)
    for name, value in _texts(content):
        if "${" in value:
            raise ValueError(f"Expected {name} to be filled in once but it holds {value!r}; write the value itself.")
    for node in _nodes(content):
        target = str(node["_target_"])
        for one in (target, str(node.get("path", ""))) if target in LOOKING_UP else (target,):
            if one not in LOOKING_UP and (why := _refusal(one)):
                raise ValueError(f"Expected a class or function that builds a part of the run but got {one!r}: {why}.")
        for key, unsafe in (("trust_remote_code", True), ("weights_only", False)):
            if node.get(key) is unsafe:
                raise ValueError(f"{target} with {key}={unsafe} may run any code; call it in a function of your own.")
    return content


def check_resolvers(config: Any) -> None:
    """Refuse resolvers other than `RESOLVERS` in a composed configuration, before any is called."""
    raw = OmegaConf.to_container(config._get_root() if OmegaConf.is_config(config) else config, resolve=False)
    for name, value in _texts(raw):
        for resolver in _resolvers_in(value) if "${" in value else ():
            if resolver not in RESOLVERS:
                allowed = ", ".join(sorted(RESOLVERS))
                raise ValueError(f"Expected ${{…}} of {allowed} only but {name} asks {resolver!r}: {value}.")


def without_interpolations(config: Any, path: Path) -> Any:
    """Refuse ${…} in the content of a file: programs write files with every value filled in."""
    for name, value in _texts(config):
        if "${" in value:
            raise ValueError(
                f"{path}: Expected every value filled in but {name} holds ${{…}}, which may run anything when it is "
                "filled in; write the value itself, or take a file that train.py wrote."
            )
    return config


@dataclass(frozen=True)
class _Reader:
    """Checks the nodes of one file."""

    path: Path
    table: Table
    trusted: tuple[str, ...]

    def value(self, value: Any, where: str, nodes: int = 0, depth: int = 0, paths: tuple[str, ...] | None = ()) -> Any:
        """Return a value that holds nothing but what is allowed; `paths` None: of a node that the user trusts."""
        if depth > NESTING:
            raise ValueError(f"{self.path}: Expected at most {NESTING} levels of lists and dicts but {where} has more.")
        if isinstance(value, Mapping):
            if "_target_" in value:
                return self.node(value, where, nodes + 1, depth)
            for key in value:
                self._check_key(key, where, trusted=paths is None)
            return {
                key: self._argument(key, part, f"{where}.{key}", nodes, depth, paths) for key, part in value.items()
            }
        if isinstance(value, list | tuple):
            return [self.value(part, f"{where}.{n}", nodes, depth + 1, paths) for n, part in enumerate(value)]
        if isinstance(value, str):
            return self._text(value, where, paths)
        if value is not None and not isinstance(value, bool | int | float):
            raise ValueError(
                f"{self.path}: Expected {where} to be a plain value (null, true, number, text, list, dict) but got "
                f"{type(value).__name__}."
            )
        return value

    def node(self, node: Mapping[Any, Any], where: str, nodes: int, depth: int) -> dict[str, Any]:
        """Return the node with every argument checked, and what would fetch weights set to None."""
        target, own = self._target(node["_target_"], where)
        if nodes > DEPTH:
            raise ValueError(f"{self.path}: Expected at most {DEPTH} targets inside each other but {where} has more.")
        found = locate(target, self.path, where)
        if own and not _is_inside(home_of(found), self.trusted):
            raise ValueError(f"{self.path}: {where} asks to call {target!r}, which is {home_of(found)}: trust that.")
        self._check_special(node, where)
        parameters = _parameters_of(found)
        if target.startswith("transformers.") and not own:
            self._check_options(node, parameters, where)
        paths = None if own else self.table.names.get(target, ())
        names = [name for name, one in parameters.items() if one.kind is not one.KEYWORD_ONLY]
        cleaned: dict[str, Any] = {"_target_": target}
        if "_partial_" in node:
            cleaned["_partial_"] = node["_partial_"]
        if "_args_" in node:
            each = zip_longest(names[: len(node["_args_"])], node["_args_"], fillvalue="")
            cleaned["_args_"] = [
                self._argument(name, one, f"{where}._args_.{n}", nodes, depth, paths)
                for n, (name, one) in enumerate(each)
            ]
        for key in (key for key in node if key not in SPECIAL):
            self._check_key(key if isinstance(key, str) else None, where, trusted=own)
            cleaned[key] = self._argument(key, node[key], f"{where}.{key}", nodes, depth, paths)
        return {**cleaned, **_not_fetched(parameters, cleaned, names)} if self.table.networks and not own else cleaned

    def _target(self, given: Any, where: str) -> tuple[str, bool]:
        """Return the target's name of today, and whether it is of a package that the user trusts."""
        target = current_name(given) if isinstance(given, str) else ""
        own = _is_inside(target, self.trusted)
        if not own and not self.table.has(target):
            package = target.partition(".")[0] or "PACKAGE"
            raise ValueError(
                f"{self.path}: {where} asks to call {given!r}, which a file may not name unless you trust it; if you "
                f"know that file and that package: --trust {package}, in Python trusted=[{package!r}]."
            )
        return target, own

    def _argument(
        self, name: str, value: Any, where: str, nodes: int, depth: int, paths: tuple[str, ...] | None
    ) -> Any:
        """Return a parameter's value; `paths`: the parameters that take paths, None: the user trusts the node."""
        if self.table.networks and (name in WEIGHTS or (paths is not None and is_fetched(name))):
            self.value(value, where, nodes, depth + 1, None)
            return None
        own = paths if paths is None or name in paths else ()
        return self.value(value, where, nodes, depth + 1, own)

    def _text(self, value: str, where: str, paths: tuple[str, ...] | None) -> str:
        problem = "hold no ${…}" if "${" in value else None
        if problem is None and paths is not None:
            problem = _problem_of_name(value, where) if self.table.networks else _problem_of_path(value, where, paths)
        if problem:
            raise ValueError(f"{self.path}: Expected {where} to {problem} but got {value!r}.")
        return value

    def _check_special(self, node: Mapping[Any, Any], where: str) -> None:
        wrong = {
            "_partial_": not isinstance(node.get("_partial_", False), bool),
            "_args_": not isinstance(node.get("_args_", []), list | tuple),
            "_convert_": node.get("_convert_", "all") not in ("none", "partial", "object", "all"),
            "_recursive_": node.get("_recursive_", True) is not True,
        }
        for key in (key for key, is_wrong in wrong.items() if is_wrong):
            raise ValueError(f"{self.path}: Expected {where}.{key} as Hydra has it but got {node[key]!r}; remove it.")

    def _check_key(self, key: Any, where: str, *, trusted: bool) -> None:
        if isinstance(key, bool) or not isinstance(key, str | int):
            raise ValueError(f"{self.path}: Expected names in {where} but got {key!r}.")
        if "${" in str(key):
            raise ValueError(f"{self.path}: Expected names without ${{…}} in {where} but got {key!r}.")
        if not trusted and (str(key).startswith("_") or key in NEVER):
            raise ValueError(f"{self.path}: {where} sets {key}, which a file may not set; remove it.")

    def _check_options(self, node: Mapping[Any, Any], parameters: Mapping[str, Any], where: str) -> None:
        """Refuse options that a configuration of transformers would keep though it does not know them."""
        known = {*parameters, "num_labels", "out_features", "out_indices", *SPECIAL}
        for key in (key for key in node if key not in known):
            raise ValueError(
                f"{self.path}: Expected options of {node['_target_']} in {where} but got {key!r}; remove it."
            )


def is_fetched(name: Any) -> bool:
    """Return whether a parameter of this name makes a constructor download or read a file."""
    return name in FETCHED or "pretrained" in str(name)


def _not_fetched(parameters: Mapping[str, Any], given: Mapping[str, Any], names: Sequence[str]) -> dict[str, None]:
    """Return None for arguments that would download something by default."""
    positional = names[: len(given.get("_args_", ()))]
    return {
        name: None
        for name, one in parameters.items()
        if is_fetched(name) and name not in given and name not in positional
        and one.default not in (None, False, one.empty)
    }  # fmt: skip


def _parameters_of(found: Any) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(found).parameters
    except (TypeError, ValueError):
        return {}


def _problem_of_name(value: str, where: str) -> str | None:
    if re.search(r"[/\\:]", value):
        return "be a name, without / \\ and :"
    # It becomes a keyword of the network, perhaps one that downloads weights.
    return "name the classes" if where.endswith(".classes_argument") and is_fetched(value) else None


def _problem_of_path(value: str, where: str, paths: tuple[str, ...]) -> str | None:
    if paths or where.endswith(".group_pattern"):  # a regular expression
        return None
    inside = not any(
        kind(value).is_absolute() or ".." in kind(value).parts for kind in (PurePosixPath, PureWindowsPath)
    )
    return None if inside and "://" not in value else "stay inside the data set's folder"


def _is_inside(name: str, packages: Sequence[str]) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def _refusal(target: str) -> str | None:
    """Return why no yaml may name a target, or None; a target that does not import is the builder's error."""
    parts = target.split(".")
    if parts[0] in sys.stdlib_module_names:
        return "it is of Python's standard library"
    if any(part.startswith("__") for part in parts):
        return "it reaches into Python's internals"
    if parts[-1] in FETCHING or _is_inside(target, DANGEROUS):
        return "it runs, downloads or unpickles what its arguments say"
    try:
        *passed, found = steps_to(target)
    except Exception:  # whatever an import may raise
        return None
    homes = [*(parent.__name__ for parent in passed if isinstance(parent, ModuleType)), home_of(found)]
    if any(home.partition(".")[0] in sys.stdlib_module_names for home in homes):
        return "it is of Python's standard library"
    return "it runs, downloads or unpickles what its arguments say" if _is_inside(home_of(found), DANGEROUS) else None


def _nodes(content: Any) -> Iterator[Mapping[Any, Any]]:
    if isinstance(content, Mapping):
        if "_target_" in content:
            yield content
        content = list(content.values())
    for part in content if isinstance(content, list | tuple) else ():
        yield from _nodes(part)


def _texts(content: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """Give every text, keys among them, with its dotted name."""
    if isinstance(content, str):
        yield name, content
    if isinstance(content, Mapping):
        for key in content:
            yield name or "a key", str(key)
    if isinstance(content, Mapping | list | tuple):
        for key, part in content.items() if isinstance(content, Mapping) else enumerate(content):
            yield from _texts(part, f"{name}.{key}" if name else str(key))


@lru_cache(maxsize=4096)
def _resolvers_in(text: str) -> tuple[str, ...]:
    """Return the names of the resolvers that a text asks, by OmegaConf's own grammar."""

    def visit(context: Any) -> Iterator[str]:
        if type(context).__name__ == "InterpolationResolverContext":
            yield context.resolverName().getText()
        for child in getattr(context, "children", None) or ():
            yield from visit(child)

    return tuple(visit(grammar_parser.parse(text)))
