"""Names that options had in earlier versions, and those of today: command lines and configurations are translated."""

import logging
import re
from collections.abc import Mapping, Sequence
from typing import Any

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
    ("model@model.network", "fpn_dropout"): "fpn",
}
# Beginnings of keys, one after the other: the network of candidates and selection is one option of mining.
RENAMED_KEYS: Mapping[str, str] = {
    r"pairs(\.sources\.\w+)?(\.predict)?\.device": "device",
    r"pairs(\.sources\.\w+)?\.predict": "predictor",
    r"pairs\.model": "predictor.model",
    r"pairs\.predicts": "candidates.networks",
    r"candidates\.networks\.(\w+)\.model\.path": r"candidates.weights.\1",
    r"selection\.acquisition\.predict": "predictor",
    r"predictor(?!\.)": "model@model.network",
    r"predictor\.device": "device",
    r"predictor\.model\.path": "model.weights",
    r"predictor\.model\.model": "model.network",
    r"selection\.acquisition\.mask_source": "selection.acquisition.candidates",
    r"data\.mask_source": "data.candidates",  # of data=shapes_judged
    r"data\.rule": "data.questions",
}
# Options without effect today, and why.
REMOVED_OPTIONS: Mapping[str, str] = {
    **dict.fromkeys(("ranking", "data.ranking"), "the ranking of all masks is always stored"),
    "predictor.model.prefix": "what stands before the network's names in a file is found by itself",
    "predictor.model.model.classes": "a network has the classes of the data",
}
# pairs=given said that nothing is mined, which is now a choice of another group.
GIVEN, ANSWERED = "candidates=given", "questions=answered"

WORD = re.compile(r"(?P<mark>\+\+|\+|~)?(?P<name>[^=@\s]+)(?P<package>@[^=\s]*)?(?P<value>=.*)?", re.DOTALL)


def current_words(words: Sequence[str], *, warn: bool = True) -> list[str]:
    """Return the words of a command line with today's names of options.

    Args:
        words: what was typed.
        warn: log a warning about each replaced word; False for words that were stored.

    >>> current_words(["-m", "cell=dpo,sft", "~start.loss", "+pairs@pairs.sources.own=existing"])
    ['-m', 'experiment/variant=dpo,sft', '~reference_training.loss', '+candidates@candidates.sources.own=existing']
    """
    found: list[str] = []
    given = False
    for word in words:
        new = current_word(word)
        if warn and new is None:
            log.warning("The option %s is ignored: %s.", word, _why_removed(_name_of(word)))
        elif warn and new != word:
            log.warning("The option %s is now written %s; the old name will stop working.", word, new)
        if new is None:
            continue
        given = given or (new == ANSWERED != word)
        found.append(new)
    if not given:
        return found
    # With pairs=given the choice of a rule and its options had no effect.
    return [word for word in found if not word.lstrip("+~").startswith(("questions=", "questions."))] + [ANSWERED]


def current_word(word: str) -> str | None:
    """Return a word of a command line with today's names; None: it has no effect today.

    >>> current_word("start=cheap_masks"), current_word("pairs=given"), current_word("ranking=true")
    ('reference_training=noisy_masks', 'questions=answered', None)
    """
    parts = WORD.fullmatch(word)
    # Neither a flag of Hydra's, nor the value of one.
    if parts is None or word.startswith("-") or (parts["value"] is None and parts["mark"] != "~"):
        return word
    if _why_removed(parts["name"]):
        return None
    name, package, value = current_name(parts["name"]), parts["package"] or "", parts["value"] or ""
    if package:
        package = "@" + ":".join(current_name(part) for part in package[1:].split(":"))
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


# Options that earlier runs do not have, with the values that give what those runs did.
ADDED_OPTIONS: Mapping[str, Any] = {
    "keep": "always",
    "measured_at": "view",
    "without_gold": "val/pairs/iou_gain",
    "reference_training": {"at_most": None},
    "transforms": {"window": None},
}


def current_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the configuration of an earlier run with today's names of keys, and what options added since would be.

    >>> found = current_config({"start": {"steps": 5}, "ckpt_path": None, "callbacks": {"how_to_go_on": None}})
    >>> found["reference_training"], found["resume"], found["callbacks"], found["keep"]
    ({'at_most': None, 'steps': 5}, None, {'resume_hint': None}, 'always')
    """
    found = {RENAMED_OPTIONS.get(key, key): value for key, value in config.items() if key not in REMOVED_OPTIONS}
    for group in ("candidates", "selection", "reward_test"):
        if group in found:
            found[group] = _without_reference(found[group])
    for (group, old), new in RENAMED_CHOICES.items():
        if isinstance(found.get(group), dict):
            found[group] = {new if key == old else key: value for key, value in found[group].items()}
    candidates = found.get("candidates")
    if isinstance(candidates, dict) and str(candidates.get("_target_")).endswith(".given"):
        found["questions"] = {"_target_": "segdpo.recipes.answered"}
    for key, value in ADDED_OPTIONS.items():
        if isinstance(value, dict) and isinstance(found.get(key), dict):
            found[key] = value | found[key]
        elif not isinstance(value, dict):
            found.setdefault(key, value)
    return found


def current_name(name: str) -> str:
    """Return the name of an option or group as it is today."""
    found = name
    for old, new in RENAMED_KEYS.items():
        found = re.sub(rf"^{old}(?=\.|$)", new, found)
    end = min([found.index(sign) for sign in "./" if sign in found], default=len(found))
    found = RENAMED_OPTIONS.get(found[:end], found[:end]) + found[end:]
    for (group, choice), new in RENAMED_CHOICES.items():
        found = re.sub(rf"^{group}\.{choice}(?=\.|$)", f"{group}.{new}", found)
    return found


def _why_removed(name: str) -> str | None:
    """Return why an option is ignored; None: it is not."""
    return REMOVED_OPTIONS.get(name) or REMOVED_OPTIONS.get(current_name(name))


def _without_reference(node: Any) -> Any:
    """Leave out the networks of candidates without weights, which stood for the reference in earlier versions."""
    if isinstance(node, list):
        return [_without_reference(part) for part in node]
    if not isinstance(node, dict):
        return node
    left_out = [key for key, part in node.items() if _is_open(part) or (key == "predict" and _asks_open(part))]
    if "model" in left_out:
        left_out.append("device")
    return {key: _without_reference(part) for key, part in node.items() if key not in left_out}


def _asks_open(node: Any) -> bool:
    return isinstance(node, dict) and _is_open(node.get("model"))


def _is_open(node: Any) -> bool:
    """Return whether this is a network whose weights are not named."""
    return isinstance(node, dict) and str(node.get("_target_")).endswith(".with_weights") and node.get("path") == "???"


def _name_of(word: str) -> str:
    parts = WORD.fullmatch(word)
    return parts["name"] if parts else word
