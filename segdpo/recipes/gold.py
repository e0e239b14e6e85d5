"""What a run needs gold masks for: said before anything is trained, with commands that would work without them."""

from collections.abc import Sequence

import numpy as np

from segdpo.data import MaskSource, Numbers, info_of, needs_gold, record_rng
from segdpo.preferences import CannotJudge, asks_network, distinct
from segdpo.recipes.config import build
from segdpo.recipes.run import Run
from segdpo.recipes.typed import choice_of, command_with

# The choices that need no masks of people.
WITHOUT_GOLD = {"candidates": "candidates=own_candidates", "judge": "judge=agreement"}
NO_MASKS = (
    " Draw gold masks of a few images, or start from a network: reference_training=checkpoint "
    "reference_training.path=FILE."
)


def check_judging(run: Run, images: Numbers) -> None:
    """Refuse candidates and a judge that need gold of images without it, and candidates that offer no image two masks.

    Args:
        run: its configuration has the candidates, the judge and the questions.
        images: the training images that would be judged; validation and test images are judged too.

    Raises:
        ValueError: the message has the count, and commands that would work.
    """
    config = run.config
    if build(config.questions) is None:  # questions=answered
        return
    candidates: MaskSource = build(config.candidates)
    needing = [group for group in WITHOUT_GOLD if needs_gold(build(config[group]))]
    judged = np.concatenate([images, run.splits.val, run.splits.test])
    lacking = np.setdiff1d(judged, run.with_gold(judged)) if needing else judged[:0]
    changed = set(needing)
    if "candidates" not in needing and not _offers_choice(run, candidates, lacking[:1] if len(lacking) else images):
        changed.add("candidates")
    elif not len(lacking):
        return
    changes = [change for group, change in WITHOUT_GOLD.items() if group in changed]
    if not len(lacking):
        raise ValueError(
            f"Expected two or more candidates for an image but {choice_of(config, 'candidates')} has them for none of "
            f"the {len(images)} images to be judged.{commands(changes)}"
        )
    raise ValueError(
        f"Expected gold of the {len(judged)} images whose masks are to be compared (training, validation, test), which "
        f"{' and '.join(choice_of(config, group) for group in needing)} needs, but {len(lacking)} have none, the first "
        f"{_id_of(run, lacking)!r}.{commands(changes, *_answered(run, judged))}"
    )


def check_target(run: Run, pool: Numbers) -> None:
    """Refuse a reference that is to learn from masks that the training images do not have.

    Args:
        run: its configuration has the target of reference_training.
        pool: the training images to learn from; with target=gold, those that have it.
    """
    config, source, train = run.config, run.source, run.splits.train
    target, choice = config.reference_training.target, choice_of(config, "reference_training")
    if target == "gold":
        if len(pool):
            return
        problem = f"Expected gold of some training images for {choice} but none of the {len(train)} has any."
        ways = [["reference_training=noisy_masks"]] if len(source[int(train[0])].masks) else []
    else:
        if target not in ("first", "any", "mean") or len(source[int(pool[0])].masks):
            return
        gold = len(run.with_gold(train))
        problem = (
            f"Expected masks of the training images for {choice} (target {target!r}) but {_id_of(run, pool)!r} has "
            f"none; {gold} of the {len(train)} have gold."
        )
        changes = ["reference_training=few_masks", WITHOUT_GOLD["candidates"]]
        ways = [changes + [WITHOUT_GOLD["judge"]] * (gold < len(train))] if gold else []
    raise ValueError(problem + (commands(*ways) if ways else NO_MASKS))


def check_gold(run: Run, option: str, images: Numbers, *changes: Sequence[str]) -> None:
    """Refuse an option that needs gold of images without it.

    Args:
        run: the run.
        option: as it is typed.
        images: their numbers.
        *changes: other options, each list of them a way to run.
    """
    lacking = np.setdiff1d(images, run.with_gold(images))
    if len(lacking):
        raise ValueError(
            f"Expected gold of the {len(images)} images for {option} but {len(lacking)} have none, the first "
            f"{_id_of(run, lacking)!r}.{commands(*changes)}"
        )


def commands(*changes: Sequence[str]) -> str:
    """Return the end of a message: this run's command with each of these lists of changed options, one a line."""
    lines = "".join(f"\n  {command_with(*one)}" for one in changes)
    return f" Nothing has been trained. What would work:{lines}"


def _answered(run: Run, judged: Numbers) -> list[list[str]]:
    """Return the change to the answers beside the data, if there are any."""
    infos = (info_of(run.source, int(number)) for number in judged)
    return [["questions=answered"]] if any(info.pairs or (info.ranking or 0) > 1 for info in infos) else []


def _offers_choice(run: Run, candidates: MaskSource, images: Numbers) -> bool:
    """Return whether one of the images has two different candidates; those of a network are not known yet."""
    if asks_network(candidates):
        return True
    for number in images:
        record = run.source[int(number)]
        try:
            offered = candidates(record, record_rng(run.config.seed, record.id, "candidates"))
        except CannotJudge:
            continue
        if len(offered.masks) > 1 and len(distinct(offered).masks) > 1:
            return True
    return False


def _id_of(run: Run, images: Numbers) -> str:
    return info_of(run.source, int(images[0])).id
