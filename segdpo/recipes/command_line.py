"""The command line of Hydra applications: old names of options, names of sweep folders, errors as messages.

`run_application` is what train.py and scripts/mine.py call; `current_words` serves the commands that compose a
configuration themselves.
"""

import logging
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import ConfigCompositionException, InstantiationException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

log = logging.getLogger(__name__)

# Old → new, for one release. Groups and keys, by the first part of an option's name:
RENAMED_OPTIONS: Mapping[str, str] = {
    "pairs": "candidates",
    "rule": "questions",
    "start": "reference_training",
    "ckpt_path": "resume",
    "cell": "experiment/variant",
    "table": "experiment/table",
}
# Choices, by their group of today; the callback is a key of its group too.
RENAMED_CHOICES: Mapping[tuple[str, str], str] = {
    ("reference_training", "cheap_masks"): "noisy_masks",
    ("callbacks", "how_to_go_on"): "resume_hint",
    ("experiment", "worth_cheap_masks"): "worth_noisy_masks",
    ("experiment", "worth_bubil_cheap"): "worth_bubil_noisy",
}
# Beginnings of keys, with the groups' names of today: the network of candidates and selection is one option of mining.
RENAMED_KEYS: Mapping[str, str] = {
    r"candidates(\.sources\.\w+)?\.predict": "predictor",
    r"candidates\.model": "predictor.model",
    r"candidates\.predicts": "candidates.networks",
    r"selection\.acquisition\.predict": "predictor",
    r"selection\.acquisition\.mask_source": "selection.acquisition.candidates",
    r"data\.mask_source": "data.candidates",  # of data=shapes_judged
    r"data\.rule": "data.questions",
}
# Options without effect today, and why.
REMOVED_OPTIONS: Mapping[str, str] = dict.fromkeys(
    ("ranking", "data.ranking"), "the ranking of all masks is always stored"
)
# pairs=given said that nothing is mined, which is now a choice of another group.
GIVEN, ANSWERED = "candidates=given", "questions=answered"

WORD = re.compile(r"(?P<mark>\+\+|\+|~)?(?P<name>[^=@\s]+)(?P<package>@[^=\s]*)?(?P<value>=.*)?", re.DOTALL)
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


def current_words(words: Sequence[str]) -> list[str]:
    """Return the words of a command line with today's names of options; each replaced word is warned about.

    >>> current_words(["-m", "cell=dpo,sft", "~start.loss", "+pairs@pairs.sources.own=existing"])
    ['-m', 'experiment/variant=dpo,sft', '~reference_training.loss', '+candidates@candidates.sources.own=existing']
    """
    found: list[str] = []
    given = False
    for word in words:
        new = _current_word(word)
        if new is None:
            log.warning("The option %s is ignored: %s.", word, REMOVED_OPTIONS[_name_of(word)])
            continue
        if new != word:
            log.warning("The option %s is now written %s; the old name will stop working.", word, new)
        given = given or (new == ANSWERED != word)
        found.append(new)
    if not given:
        return found
    # With pairs=given the choice of a rule had no effect.
    return [word for word in found if not word.lstrip("+").startswith("questions=")] + [ANSWERED]


def current_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the configuration of an earlier run with today's names of keys.

    >>> current_config({"start": {"steps": 5}, "ckpt_path": None, "callbacks": {"how_to_go_on": None}})
    {'reference_training': {'steps': 5}, 'resume': None, 'callbacks': {'resume_hint': None}}
    """
    found = {RENAMED_OPTIONS.get(key, key): value for key, value in config.items() if key not in REMOVED_OPTIONS}
    for (group, old), new in RENAMED_CHOICES.items():
        if isinstance(found.get(group), dict):
            found[group] = {new if key == old else key: value for key, value in found[group].items()}
    candidates = found.get("candidates")
    if isinstance(candidates, dict) and str(candidates.get("_target_")).endswith(".given"):
        found["questions"] = {"_target_": "segdpo.recipes.answered"}
    return found


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


def _current_word(word: str) -> str | None:
    """Return a word with today's names; None: it has no effect today."""
    parts = WORD.fullmatch(word)
    # Neither a flag of Hydra's, nor the value of one.
    if parts is None or word.startswith("-") or (parts["value"] is None and parts["mark"] != "~"):
        return word
    if parts["name"] in REMOVED_OPTIONS:
        return None
    name, package, value = _current_name(parts["name"]), parts["package"] or "", parts["value"] or ""
    if package:
        package = "@" + ":".join(_current_name(part) for part in package[1:].split(":"))
    for (group, old), new in RENAMED_CHOICES.items():
        if name == group:
            value = re.sub(rf"(?<![\w.-]){old}(?![\w.-])", new, value)
    value = re.sub(r"(?<=\$\{)[a-z_]+(?=[.}\[])", lambda key: RENAMED_OPTIONS.get(key[0], key[0]), value)
    new_word = f"{parts['mark'] or ''}{name}{package}{value}"
    if new_word.lstrip("+") == GIVEN:
        return ANSWERED
    if name == "candidates" and re.search(r"(?<![\w.-])given(?![\w.-])", value):
        raise ValueError(f"Expected pairs=given alone but got {word}; run {ANSWERED} apart from choices of candidates.")
    return new_word


def _current_name(name: str) -> str:
    """Return the name of an option or group as it is today."""
    end = min([name.index(sign) for sign in "./" if sign in name], default=len(name))
    found = RENAMED_OPTIONS.get(name[:end], name[:end]) + name[end:]
    for old, new in RENAMED_KEYS.items():
        found = re.sub(rf"^{old}(?=\.|$)", new, found)
    for (group, choice), new in RENAMED_CHOICES.items():
        found = re.sub(rf"^{group}\.{choice}(?=\.|$)", f"{group}.{new}", found)
    return found


def _name_of(word: str) -> str:
    parts = WORD.fullmatch(word)
    return parts["name"] if parts else word


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
