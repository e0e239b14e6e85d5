"""The verdict on a data set that was checked: the command that trains on it, or what is missing."""

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from segdpo.data.checking import Check

# Images of one size up to this are trained on whole; others are resized to at most this, or cut if they are larger
# than LARGE: what is 3 pixels wide would be lost.
WHOLE, LARGE = 256, 640
STEP = 32  # sides of the network's input
FEWEST = 4  # images: train, val and test, and one to judge that the reference has not seen
# Of the images, this share is trained on, and the reference sees at most so many of their gold masks.
TRAIN, SEEN = 0.7, 16
# Validation judgements show whether a policy is better than its reference: of so many images, if a quarter is enough.
HELD_OUT, LARGEST_SHARE = 20, 0.25
SHOWING = 5  # judged images (or groups of them); of fewer the safety rule keeps the reference
FIXES = {
    "empty mask": "if these images show no object, accept them with --allow 'empty mask'",
    "duplicate image": "remove the copies, or accept them with --allow 'duplicate image'",
    "mask without image": "rename or remove these masks, or accept them with --allow 'mask without image'",
    "size": "save each mask in the size of its image",
    "unreadable": "restore or remove these files",
    "mask format": "save masks as PNG, with one colour or number a class",
    "class": "map the numbers with data.mask_format, or name the class in data.classes",
    "image in two splits": "remove the copy from one split",
    "group in two splits": "correct the splits, or draw new ones: train with datamodule.split.given=false",
    "id twice": "rename one of them",
    "pair without difference": "remove these pairs",
    "no preference": "judge these images, or leave out --require-pairs",
}


@dataclass(frozen=True)
class Verdict:
    """Whether a data set can be trained on.

    Args:
        missing: what has to be done first, each with its fix; none: it is ready.
        options: of `segdpo train`, besides those of the data.
        reasons: why these options, one sentence each.
    """

    missing: Sequence[str]
    options: Sequence[str]
    reasons: Sequence[str]

    @property
    def ready(self) -> bool:
        """Whether nothing is missing."""
        return not self.missing


def verdict(check: Check) -> Verdict:
    """Return what a check of the whole data set means for training."""
    missing = [
        f"{number} × {kind}: {FIXES.get(kind, 'see the messages above')}"
        for (level, kind), number in check.counts().items()
        if level == "error"
    ]
    if check.records < FEWEST:
        missing.append(f"{FEWEST} images at least, to train, validate and test on; there are {check.records}")
    if not (check.gold or check.masked):
        missing.append(
            "masks: draw gold masks of some images (16 are a good start), and put them into masks/ under the names of "
            "the images; or put masks of several people or models into masks_NAME/"
        )
    chosen = [*_learning(check), *_held_out(check), *_size(check), *_classes(check)]
    return Verdict(missing, [option for option, _ in chosen if option], [reason for _, reason in chosen if reason])


def _learning(check: Check) -> list[tuple[str, str]]:
    """Return what the reference is trained on, what is compared, and who judges."""
    chosen = []
    if check.gold and (check.gold < check.records or not check.masked):
        reason = f"{check.gold} images have one, and some of them validate and test"
        chosen.append(("reference_training=few_masks", f"the reference learns from gold masks: {reason}"))
        if check.gold == check.records and TRAIN * check.records < SEEN + 4:
            half = max(1, int(TRAIN * check.records / 2))
            reason = f"it sees {half} images, since others are left to judge"
            chosen.append((f"reference_training.images={half}", reason))
        if check.gold == check.records:
            chosen.append(
                ("", "every image has gold: task=supervised datamodule.items.target=gold learns from all of it alone")
            )
    else:
        chosen.append(("", "the reference learns from the candidates' first masks"))
    if check.judged:
        chosen.append(("questions=answered", f"{check.judged} images have preferences"))
        return chosen
    if not check.compared:
        chosen.append(("candidates=own_candidates", "candidates are masks that the reference predicts"))
    if check.gold < check.records:
        reason = f"{check.records - check.gold} images have no gold: candidates are judged by how well they agree"
        chosen.append(("judge=agreement", reason))
    return chosen


def _held_out(check: Check) -> list[tuple[str, str]]:
    """Return the share of validation images, where the default of .1 is too few to show that a policy is better."""
    share = round(min(LARGEST_SHARE, HELD_OUT / check.records), 2) if check.records else 0.0
    if check.split or share <= 0.1:
        return []
    count = int(share * check.records)
    reason = f"{count} images validate: with fewer, a gain could hardly be shown"
    if count < SHOWING:
        reason = (
            f"{count} of {check.records} images validate: with fewer than {SHOWING} no gain can be shown, and the "
            "reference is kept; keep=always returns the policy"
        )
    return [(f"datamodule.split.val={share:g}", reason)]


def _size(check: Check) -> list[tuple[str, str]]:
    """Return how images become the network's input."""
    sides = np.array([max(size) for size in check.sizes.elements()] or [0])
    if len(check.sizes) == 1 and sides.max() <= WHOLE:
        return [("", "images are small and of one size, and are used whole")]
    if np.median(sides) > LARGE:
        return [("transforms=crop", f"images are large ({int(np.median(sides))} pixels), and are cut")]
    size = int(min(WHOLE, max(STEP, STEP * round(float(np.median(sides)) / STEP))))
    reason = "images are of several sizes" if len(check.sizes) > 1 else "images are larger than the network's input"
    return [("transforms=resized", f"{reason}, and are resized to {size} × {size}"), (f"transforms.size={size}", "")]


def _classes(check: Check) -> list[tuple[str, str]]:
    if check.classes[0].lower() in ("background", "bg", "_background_", "unlabeled", "other"):
        return []
    return [("background=true", f"class 0 is {check.classes[0]!r}, and counts like the others")]


def command_line(options: Mapping[str, Any], more: Sequence[str]) -> str:
    """Return the command that trains with these options, to paste into a shell.

    >>> print(command_line({"data": "plain", "data.root": "my photos", "data.gold": None}, ["seed=1"]))
    segdpo train data=plain 'data.root="my photos"' data.gold=null seed=1
    """
    return shlex.join(["segdpo", "train", *(override(key, value) for key, value in options.items()), *more])


def override(key: str, value: Any) -> str:
    """Return key=value as Hydra's command line reads it.

    >>> override("data.root", "my photos"), override("loss", "dpo"), override("resume", None)
    ('data.root="my photos"', 'loss=dpo', 'resume=null')
    """
    return f"{key}={_hydra(value)}"


def _hydra(value: Any) -> str:
    """Return a value as Hydra's command line reads it."""
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{_key(key)}:{_hydra(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(map(_hydra, value)) + "]"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if not isinstance(value, str):
        return f"{value:g}" if isinstance(value, float) and value.is_integer() else str(value)
    plain = re.fullmatch(r"[A-Za-z_./][\w./-]*", value) and value.lower() not in ("null", "true", "false", "nan", "inf")
    return value if plain else '"' + re.sub(r'(\\*)"', r"\1\1\"", value) + '"'


def _key(key: Any) -> str:
    """Return a key of a dictionary, which cannot be quoted: signs that mean something have a backslash."""
    return re.sub(r"([^\w /.-])", r"\\\1", key) if isinstance(key, str) else str(key)
