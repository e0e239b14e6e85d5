"""What a `_target_` means: today's names of earlier versions' names, and the objects that names stand for."""

import inspect
import warnings
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

# Where the names of earlier versions are now. A name below the left side, such as segdpo.pairs.judges.iou, is a name of
# the package on the right, segdpo.preferences.iou; the longest left side counts.
MOVED: Mapping[str, str] = {
    "segdpo.data": "segdpo.data",
    "segdpo.losses": "segdpo.losses",
    "segdpo.losses.anchors": "segdpo.anchors",
    "segdpo.losses.listwise": "segdpo.listwise",
    "segdpo.losses.objectives": "segdpo.objectives",
    "segdpo.models": "segdpo.models",
    "segdpo.pairs": "segdpo.preferences",
    "segdpo.pairs.annotators": "segdpo.data",
    "segdpo.regions": "segdpo",
    "segdpo.reports": "segdpo.reports",
    "segdpo.rewards": "segdpo.rl",
    "segdpo.story": "segdpo.recipes",
    "segdpo.training": "segdpo.training",
    "segdpo.training.policy_gradient_settings": "segdpo.rl",
}
# Names that changed themselves, or whose parameters did.
RENAMED: Mapping[str, str] = {
    **dict.fromkeys(
        ("segdpo.models.segformer", "segdpo.models.hugging_face.segformer", "segdpo.models.segmenter.segformer"),
        "segdpo.models.transformers_model",
    ),
    "segdpo.data.mined.Mined": "segdpo.preferences.mined_of_old",
    "segdpo.story.best_of.run": "segdpo.recipes.run_best_of",
    "segdpo.story.finetune.run": "segdpo.recipes.run_finetune",
    "segdpo.story.policy_gradient.run": "segdpo.recipes.run_policy_gradient",
    "segdpo.story.preference.run": "segdpo.recipes.run_preference",
    "segdpo.story.preferences.given": "segdpo.recipes.answered",
    "segdpo.story.reward.run": "segdpo.recipes.run_reward",
    "segdpo.story.supervised.run": "segdpo.recipes.run_supervised",
    "segdpo.training.beta.constant": "segdpo.training.constant_beta",
    "segdpo.training.beta.cosine": "segdpo.training.cosine_beta",
    "segdpo.training.beta.linear": "segdpo.training.linear_beta",
    "segdpo.training.callbacks.checkpointing.HowToGoOn": "segdpo.training.ResumeHint",
}


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


def locate(target: str, path: Path, where: str) -> Any:
    """Return the object that a target names; `path` and `where` are for the message."""
    try:
        found = steps_to(target)[-1]
    except Exception as error:  # whatever an import may raise
        raise ValueError(
            f"{path}: Expected {target!r} ({where}) to exist but it does not import ({error}); install its package."
        ) from error
    return found


def steps_to(target: str) -> list[Any]:
    """Return the objects of a dotted name, from its first module to the object that it names, as Hydra finds them.

    >>> [getattr(one, "__name__", None) for one in steps_to("torch.nn.Conv2d")]
    ['torch', 'torch.nn', 'Conv2d']
    """
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
    """Return where a class or function is defined, independent of the name under which it was found."""
    owner = getattr(found, "__objclass__", found)  # of methods that C defines
    named = inspect.isclass(owner) or inspect.isroutine(owner) or "__module__" in getattr(owner, "__dict__", ())
    return f"{owner.__module__}.{getattr(found, '__qualname__', '')}" if named else ""
