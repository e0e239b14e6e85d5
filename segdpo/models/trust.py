"""Which targets a file may name: naming one means calling it, so a file from elsewhere names only what is listed.

Three kinds of files, three rules:

- weights (their header): networks, `NETWORKS`; arguments are plain values that name no file, or further networks;
- the config.yaml of a run: data and eval transforms, `EVALUATION`; only data sources take paths, in marked parameters;
- a yaml that the user chose: any package, but nothing of the standard library and no `GADGETS`.

`--trust PACKAGE` adds a package to the first two. docs/deploy.md says so to users.
"""

import inspect
import re
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from itertools import zip_longest
from pathlib import Path, PurePosixPath, PureWindowsPath
from types import ModuleType
from typing import Any

from hydra.utils import instantiate
from omegaconf import OmegaConf, grammar_parser

# Where the names of earlier versions are now. A name below the left side, such as segdpo.pairs.judges.iou, is a name of
# the package on the right, segdpo.preferences.iou; the longest left side counts.
MOVED: Mapping[str, str] = {
    "segdpo.data": "segdpo.data",
    "segdpo.data.mined": "segdpo.preferences",
    "segdpo.losses": "segdpo.losses",
    "segdpo.models": "segdpo.models",
    "segdpo.pairs": "segdpo.preferences",
    "segdpo.pairs.annotators": "segdpo.data",
    "segdpo.reports": "segdpo.reports",
    "segdpo.rewards": "segdpo.rl",
    "segdpo.story": "segdpo.recipes",
    "segdpo.training": "segdpo.training",
    "segdpo.training.policy_gradient_settings": "segdpo.rl",
}
# Names that changed themselves.
RENAMED: Mapping[str, str] = {
    "segdpo.story.best_of.run": "segdpo.recipes.run_best_of",
    "segdpo.story.finetune.run": "segdpo.recipes.run_finetune",
    "segdpo.story.policy_gradient.run": "segdpo.recipes.run_policy_gradient",
    "segdpo.story.preference.run": "segdpo.recipes.run_preference",
    "segdpo.story.reward.run": "segdpo.recipes.run_reward",
    "segdpo.story.supervised.run": "segdpo.recipes.run_supervised",
    "segdpo.training.beta.constant": "segdpo.training.constant_beta",
    "segdpo.training.beta.cosine": "segdpo.training.cosine_beta",
    "segdpo.training.beta.linear": "segdpo.training.linear_beta",
}


@dataclass(frozen=True)
class Family:
    """Every class `prefix`.NAME, or `prefix`.MODULE.NAME, that derives from one of `bases` and is defined in `home`."""

    prefix: str
    home: str
    bases: tuple[str, ...]
    besides: frozenset[str] = frozenset()

    def has(self, target: str) -> bool:
        """Return whether the target is of the family; imports modules of `home` only."""
        found = re.fullmatch(rf"{re.escape(self.prefix)}\.(?:[a-z]\w*\.)?[A-Za-z]\w*", target)
        if not found:
            return False
        try:
            *_, cls = passed_on_the_way(target)
        except Exception:  # whatever an import may raise
            return False
        if not isinstance(cls, type) or not f"{cls.__module__}.".startswith(f"{self.home}."):
            return False
        # By the names of the classes, since libraries export them under others too.
        mro = cls.__mro__
        derives = any(f"{base.__module__}.{base.__qualname__}" in self.bases for base in mro)
        return derives and not any(base.__name__ in self.besides for base in mro)


@dataclass(frozen=True)
class Table:
    """The targets that a kind of file may name: exact names with their parameters that take paths, and families.

    Of a table of `networks`, what would fetch or read weights becomes None; ours come from the file.
    """

    names: Mapping[str, tuple[str, ...]]
    families: tuple[Family, ...] = ()
    networks: bool = False

    def has(self, target: str) -> bool:
        """Return whether the table allows the target."""
        return target in self.names or any(family.has(target) for family in self.families)


def _under(package: str, names: str, paths: tuple[str, ...] = ()) -> dict[str, tuple[str, ...]]:
    return {f"{package}.{name}": paths for name in names.split()}


_MODULE = ("torch.nn.modules.module.Module",)

NETWORKS = Table(
    {
        **_under("segdpo.models", "Segmenter smp_model wrap"),
        **_under("segdpo.models", "segformer"),
        **_under("segdpo.models", "RewardModel DenseRewardModel"),
        **_under("segdpo.models", "ValueHead"),
        **_under(
            "segmentation_models_pytorch",
            "Unet UnetPlusPlus MAnet Linknet FPN PSPNet PAN DeepLabV3 DeepLabV3Plus UPerNet Segformer DPT create_model",
        ),
        **_under(
            "torchvision.models.segmentation",
            "deeplabv3_mobilenet_v3_large deeplabv3_resnet50 deeplabv3_resnet101 fcn_resnet50 fcn_resnet101 "
            "lraspp_mobilenet_v3_large",
        ),
        **_under(
            "transformers",
            "BeitForSemanticSegmentation Data2VecVisionForSemanticSegmentation DPTForSemanticSegmentation "
            "MobileNetV2ForSemanticSegmentation MobileViTForSemanticSegmentation MobileViTV2ForSemanticSegmentation "
            "SegformerForSemanticSegmentation UperNetForSemanticSegmentation "
            "BeitConfig Data2VecVisionConfig DPTConfig MobileNetV2Config MobileViTConfig MobileViTV2Config "
            "SegformerConfig UperNetConfig ConvNextConfig ConvNextV2Config Dinov2Config ResNetConfig SwinConfig",
        ),
    },
    (
        Family("torch.nn", "torch.nn.modules", _MODULE),
        Family("torch.nn.modules", "torch.nn.modules", _MODULE),
        # Left out: those that look up or fetch what their arguments name.
        Family(
            "monai.networks.nets",
            "monai.networks.nets",
            _MODULE,
            frozenset(
                ["BertPreTrainedModel", "CellSamWrapper", "MILModel", "MultiModal", "TorchVisionFCModel", "Transchex"]
            ),
        ),
    ),
    networks=True,
)

ADAPTERS = Table(_under("segdpo.models", "add_lora no_adapter"), networks=True)

# Steps that read files, or call functions, that their arguments name.
_READING = (
    "FDA HistogramMatching Lambda MixUp Mosaic OverlayElements PixelDistributionAdaptation TemplateTransform TextImage"
)
_STEP = ("albumentations.core.transforms_interface.BasicTransform", "albumentations.core.composition.BaseCompose")
_STEPS = ("segdpo.data.albumentations", "albumentations")

EVALUATION = Table(
    {
        **_under("segdpo.data", "CocoDataset", ("annotations", "images")),
        **_under("segdpo.data", "FolderDataset", ("root",)),
        **_under("segdpo.data", "PackDataset", ("path",)),
        **_under("segdpo.data", "PlainFolder", ("root",)),
        **_under("segdpo.data", "PetDataset VocDataset", ("root",)),
        **_under("segdpo.data", "Shapes"),
        **_under("segdpo.preferences", "Mined"),
        **_under("segdpo.data", "split_by_fold split_by_fraction"),
        **_under("segdpo.data", "Pipeline"),
        # What makes and judges masks from records alone; sources that ask a network read its weights from a path.
        **_under("segdpo.data", "Annotator annotate"),
        **_under("segdpo.preferences", "existing"),
        **_under("segdpo.preferences", "bradley_terry flipped"),
        **_under("segdpo.preferences", "corrupt"),
        **_under("segdpo.preferences", "agreement consensus dice iou"),
        **_under("segdpo.preferences", "gumbel"),
        **_under("segdpo.preferences", "boundary_iou hd95 surface_dice"),
        **_under("segdpo.preferences", "mixture"),
        **_under("segdpo.preferences", "adjacent_ranks all_pairs best_worst by_gap random_pairs"),
    },
    tuple(Family(prefix, "albumentations", _STEP, frozenset(_READING.split())) for prefix in _STEPS),
)

# Functions that run, import, fetch or unpickle what their arguments say, by where they are defined.
GADGETS = (
    "cloudpickle",
    "dill",
    "hydra",
    "IPython",
    "joblib",
    "numexpr",
    "numpy.f2py",
    "numpy.load",
    "omegaconf",
    "pandas.eval",
    "pandas.io",
    "pip",
    "segdpo.files",
    "setuptools",
    "sympy",
    "timm.models._helpers",
    "torch.hub",
    "torch.jit",
    "torch.package",
    "torch.serialization",
    "torch.utils.cpp_extension",
    "torchvision.datasets.utils",
)
FETCHING = ("load_state_dict", "load_state_dict_from_url")
# These look another target up, which their `path` names.
LOOKING_UP = ("hydra.utils.get_method", "hydra.utils.get_class", "hydra.utils.get_object")
RESOLVERS = frozenset({"oc.env", "oc.select", "hydra", "now", "run_name"})

SPECIAL = ("_target_", "_partial_", "_args_", "_convert_", "_recursive_")
# Parameters by which networks fetch or read weights; ours come from the file. So does every "pretrained…".
WEIGHTS = ("encoder_weights", "weights", "weights_backbone")
FETCHED = (*WEIGHTS, "checkpoint", "checkpoint_path", "ckpt_path", "cache_dir", "path_or_repo_id")
# Options that make a library run code, or take a file for more than numbers.
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


def checked(config: Any, path: Path, where: str, *, table: Table = NETWORKS, trusted: Sequence[str] = ()) -> Any:
    """Return plain values that name nothing but what the table, or a trusted package, has; refuse the rest.

    Old names become today's, and what would fetch or read weights becomes None.

    Args:
        config: what a file says: plain values, lists and dicts.
        path: the file, for messages.
        where: the key of `config` in that file, for messages.
        table: what may be named.
        trusted: packages beside it; arguments of what they define are free.
    """
    return _Reader(path, table, tuple(trusted)).value(config, where)


def build_named(config: Any, path: Path, where: str, *, table: Table = NETWORKS, trusted: Sequence[str] = ()) -> Any:
    """Build what a file names, after checking it."""
    content = checked(config, path, where, table=table, trusted=trusted)
    try:
        return instantiate(content, _convert_="all")
    except Exception as error:  # whatever a constructor raises at arguments that it was not made for
        raise ValueError(f"{path}: {where} cannot be built from its description: {error}") from error


def without_interpolations(config: Any, path: Path) -> Any:
    """Refuse ${…} anywhere in what a file says: files that programs write have every value filled in."""
    for name, value in _texts(config):
        if "${" in value:
            raise ValueError(
                f"{path}: Expected every value filled in but {name} holds ${{…}}, which may run anything when it is "
                "filled in; write the value itself, or take a file that train.py wrote."
            )
    return config


def check_targets(content: Any) -> Any:
    """Refuse gadgets in a yaml of the user's that is filled in: the standard library, and functions that run text.

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
    """Refuse resolvers other than `RESOLVERS` anywhere in a composed configuration, before any is called."""
    raw = OmegaConf.to_container(config._get_root() if OmegaConf.is_config(config) else config, resolve=False)
    for name, value in _texts(raw):
        for resolver in _resolvers_in(value) if "${" in value else ():
            if resolver not in RESOLVERS:
                allowed = ", ".join(sorted(RESOLVERS))
                raise ValueError(f"Expected ${{…}} of {allowed} only but {name} asks {resolver!r}: {value}.")


def current_name(target: str) -> str:
    """Return today's name of a target of an earlier version, by `RENAMED` and `MOVED`.

    >>> current_name("segdpo.pairs.judges.iou")
    'segdpo.preferences.iou'
    """
    if target in RENAMED:
        return RENAMED[target]
    package = max((old for old in MOVED if target.startswith(f"{old}.")), key=len, default="")
    if not package:
        return target
    *modules, name = target.removeprefix(f"{package}.").split(".")
    inner = "albumentations." if modules[-1:] == ["albumentations"] else ""
    return f"{MOVED[package]}.{inner}{name}"


def with_current_names(content: Any) -> Any:
    """Return a filled-in yaml with today's names in the place of those of earlier versions, each with a warning."""
    if isinstance(content, list):
        return [with_current_names(part) for part in content]
    if not isinstance(content, Mapping):
        return content
    renamed = {key: with_current_names(value) for key, value in content.items()}
    target = renamed.get("_target_")
    if isinstance(target, str) and (now := current_name(target)) != target:
        warnings.warn(f"_target_: {target} is now {now}; the old name goes with the next release.", FutureWarning, 2)
        renamed["_target_"] = now
    return renamed


def is_fetched(name: Any) -> bool:
    """Return whether a parameter of this name makes a constructor fetch or read a file."""
    return name in FETCHED or "pretrained" in str(name)


def locate(target: str, path: Path, where: str) -> Any:
    """Return what a target means."""
    try:
        *_, found = passed_on_the_way(target)
    except Exception as error:  # whatever an import may raise
        raise ValueError(
            f"{path}: Expected {target!r} ({where}) to exist but it does not import ({error}); install its package."
        ) from error
    return found


def passed_on_the_way(target: str) -> list[Any]:
    """Return what a dotted name passes on the way to what it means, that at the end; as Hydra finds it."""
    first, *rest = target.split(".")
    found: list[Any] = [import_module(first)]
    for number, name in enumerate(rest, 1):
        try:
            found.append(getattr(found[-1], name))
        except AttributeError:
            if not isinstance(found[-1], ModuleType):
                raise
            found.append(import_module(".".join([first, *rest[:number]])))
    return found


def home_of(found: Any) -> str:
    """Return where a class or function is defined, whatever name it was found under."""
    owner = getattr(found, "__objclass__", found)  # of methods that C defines
    named = inspect.isclass(owner) or inspect.isroutine(owner) or "__module__" in getattr(owner, "__dict__", ())
    return f"{owner.__module__}.{getattr(found, '__qualname__', '')}" if named else ""


def _not_fetched(parameters: Mapping[str, Any], given: Mapping[str, Any], names: Sequence[str]) -> dict[str, None]:
    """Return None for what would be fetched by default."""
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
    # It becomes a keyword of the network: the one that fetches weights.
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
    """Return why no yaml may name a target, None if it may; what does not import is for the builder to say."""
    parts = target.split(".")
    if parts[0] in sys.stdlib_module_names:
        return "it is of Python's standard library"
    if any(part.startswith("__") for part in parts):
        return "it reaches into Python's internals"
    if parts[-1] in FETCHING or _is_inside(target, GADGETS):
        return "it runs, fetches or unpickles what its arguments say"
    try:
        *passed, found = passed_on_the_way(target)
    except Exception:  # whatever an import may raise
        return None
    homes = [*(parent.__name__ for parent in passed if isinstance(parent, ModuleType)), home_of(found)]
    if any(home.partition(".")[0] in sys.stdlib_module_names for home in homes):
        return "it is of Python's standard library"
    return "it runs, fetches or unpickles what its arguments say" if _is_inside(home_of(found), GADGETS) else None


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
