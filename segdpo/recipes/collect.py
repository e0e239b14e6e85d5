"""Collecting preferences: those that the data came with, or answers to questions about candidates."""

import copy
import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from omegaconf import DictConfig
from torch import nn

from segdpo.data import (
    Joined,
    MaskSource,
    Numbers,
    RankingDataset,
    Record,
    RecordInfo,
    RecordSource,
    Splits,
    Subset,
    info_of,
)
from segdpo.losses import PreferenceLoss
from segdpo.preferences import (
    UNJUDGED,
    Mined,
    Network,
    Questions,
    answers_for,
    answers_for_best,
    answers_for_ranking,
    asks_network,
    best_worst,
    judged_masks,
    with_network,
)
from segdpo.progress import track
from segdpo.recipes.config import Plain, build, function_of, key_for, leaves, plain, stamp_of_files
from segdpo.recipes.kept_preferences import KeptCandidates, KeptMined
from segdpo.recipes.run import Run, preparation_of
from segdpo.scores import PairScores

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Preferences:
    """Records with preferences, and what was judged for them.

    Attributes:
        source: the records.
        splits: their splits, as numbers in `source`.
        images: the numbers that the training images have in the data of the run.
        masks: how many masks of each training image were judged; empty if the data came with its preferences.
        answers: the answers that the data came with.
    """

    source: RecordSource
    splits: Splits
    images: Numbers
    masks: Sequence[int] = ()
    answers: int = 0


def collect_preferences(
    run: Run,
    images: Numbers,
    network: nn.Module | None,
    *,
    weights: Path | None = None,
    first: Preferences | None = None,
) -> Preferences:
    """Collect preferences for training images, and for the validation and test images.

    Args:
        run: its configuration has the candidates, the judge, the questions and the selection.
        images: the training images to select from.
        network: asked for candidates by sources that need one; it is copied.
        weights: the file of the network's weights. With it, candidates are kept in the cache for other runs.
        first: the preferences of the first round. The same training images are judged again, and validation and test
            images keep the preferences they had, so that all rounds are measured on the same pairs.
    """
    config, source, splits = run.config, run.source, run.splits
    candidates, selection = build(config.candidates), build(config.selection)
    questions: Questions | None = build(config.questions)
    needed = asks_network(candidates) or asks_network(selection)
    asked = network_to_ask(config, network) if needed and network is not None else None
    selected = _select(with_network(selection, asked), run, images) if first is None else first.images
    if questions is None:  # questions=answered
        infos = [info_of(source, int(number), preferences=True) for number in selected]
        return Preferences(source, splits.with_train(selected), selected, answers=sum(map(answers_of, infos)))
    named = weights if asks_network(candidates) else None
    key = preferences_key(config, named) if first is None else None

    def mine(asking: Questions) -> Mined:
        options = {"seed": config.seed, "background": config.background}
        parts = source, _kept(with_network(candidates, asked), config, named), build(config.judge), asking
        if key is None:
            return Mined(*parts, **options)
        kind = "as_asked" if asking is questions else "without_errors"
        return KeptMined(*parts, **options, folder=Path(config.cache) / "preferences" / key / kind)

    training = Subset(mine(questions), selected.tolist())
    if first is None:
        # Validation decides what is kept, by answers of the same judge, with its errors; test pairs are right.
        parts = (questions, splits.val), (without_errors(questions), splits.test)
        held_out = [Subset(mine(asked_so), numbers.tolist()) for asked_so, numbers in parts]
    else:
        held_out = [Subset(first.source, np.concatenate([first.splits.val, first.splits.test]).tolist())]
    joined = Joined([training, *held_out])
    # Records are mined when they are first read; reading them here shows a progress bar.
    new = range(len(joined) if first is None else len(training))
    found = [_counted(joined[index]) for index in track(new, "preferences", transient=True)]
    log.info("Preferences for %d of %d images.", sum(one.pairs > 0 for one in found), len(found))
    for line in _reasons(found):
        log.warning("%s", line)
    masks = [one.masks for one in found[: len(training)]]
    return Preferences(joined, _renumbered(splits, len(selected)), selected, masks)


@dataclass(frozen=True)
class _Counted:
    """Of a mined record: its pairs, how many of its masks were judged, and why it has no pairs."""

    id: str
    pairs: int
    masks: int
    reason: str


def _counted(record: Record) -> _Counted:
    reason = record.meta.get(UNJUDGED, "unknown").partition(":")[0]
    return _Counted(record.id, len(record.pairs), judged_masks(record), reason)


def _reasons(found: Sequence[_Counted]) -> list[str]:
    """Return how many records have no preference for which reason, the most frequent first, as mining does."""
    left = [one for one in found if not one.pairs]
    first = {one.reason: one.id for one in reversed(left)}
    counts = Counter(one.reason for one in left)
    return [f"No preference for {count}: {reason} (first: {first[reason]})." for reason, count in counts.most_common()]


def answered() -> None:
    """Stand for questions=answered: the preferences that the data came with are used, and nothing is asked."""


def needs_network(config: DictConfig, *more: Callable[..., object]) -> bool:
    """Return whether candidates, selection or further functions ask a network that the configuration does not name."""
    return any(asks_network(function) for function in (build(config.candidates), build(config.selection), *more))


def network_to_ask(config: DictConfig, network: nn.Module) -> Network:
    """Return a copy of a network that predicts images as it does in evaluation, on the CPU unless `device` is set."""
    # In fp32, whatever the precision of the training; a copy, since training will change the network.
    model = copy.deepcopy(network).float().requires_grad_(False)
    return Network(model, preparation_of(config), device_of(config))


def device_of(config: DictConfig) -> str:
    """Return where candidates are predicted, as with +device=cuda."""
    return str(config.get("device", "cpu"))


def _select(selection: Callable[..., Sequence[int]], run: Run, images: Numbers) -> Numbers:
    """Return those of the images that the selection chooses."""
    chosen = selection(Subset(run.source, images.tolist()), seed=run.config.seed)
    return np.sort(images[np.asarray(chosen, np.int64)])


def _kept(candidates: MaskSource, config: DictConfig, weights: Path | None) -> MaskSource:
    """Return the source, reading from the cache if its masks are those of a network whose weights are a file."""
    key = None if weights is None else candidates_key(config, weights)
    return candidates if key is None else KeptCandidates(candidates, Path(config.cache) / "candidates" / key)


def without_errors(questions: Questions) -> Questions:
    """Return the questions with answers that are always right, whatever `choice` they were given."""
    if isinstance(questions, partial) and "choice" in questions.keywords:
        kept = {name: value for name, value in questions.keywords.items() if name != "choice"}
        return partial(questions.func, *questions.args, **kept)
    return questions


def answers_of(info: RecordInfo) -> int:
    """Return how many answers the preferences of a record stand for: its pairs, or the comparisons of its ranking."""
    return info.pairs or answers_for_ranking(info.ranking or 0)


def _renumbered(splits: Splits, selected: int) -> Splits:
    """Return the splits as numbers of the joined records: train, then val, then test."""
    ends = np.cumsum([selected, len(splits.val), len(splits.test)])
    train, val, test = np.split(np.arange(ends[-1], dtype=np.uint32), ends[:-1])
    return replace(splits.with_train(train), val=val, test=test)


# How many answers it takes to judge K masks of an image.
AnswersPerImage = Callable[[int], int]


def count_answers(preferences: Sequence[Preferences], per_image: AnswersPerImage) -> int:
    """Return the answers of all rounds."""
    return sum(sum(map(per_image, one.masks)) + one.answers for one in preferences)


def answers_for_loss(config: DictConfig) -> AnswersPerImage:
    """Return the answers that the loss needs: for a ranking, for all pairs asked about, or for the best mask alone."""
    if function_of(build(config.datamodule["items"])) is RankingDataset:
        return answers_for_ranking
    return answers_for_pairs(config) if reads_rejected(build(config.loss)) else answers_for_chosen(config)


def answers_for_pairs(config: DictConfig) -> AnswersPerImage:
    """Return the answers that the pairs need."""
    return partial(answers_for, build(config.questions))


def answers_for_chosen(config: DictConfig) -> AnswersPerImage:
    """Return the answers that the chosen masks of the pairs need.

    The best mask is found without the worst, unless the judge errs or its answers include the gap.
    """
    needs_both = config.questions.get("choice") is not None or config.questions.get("min_gap", 0) > 0
    finds_best = function_of(build(config.questions)) is best_worst and not needs_both
    return answers_for_best if finds_best else answers_for_pairs(config)


def reads_rejected(loss: PreferenceLoss) -> bool:
    """Return whether the loss depends on the rejected masks; plain training on the chosen masks does not."""
    margin = torch.zeros(2, requires_grad=True)
    policy = PairScores(chosen=torch.full((2,), -1.0, requires_grad=True), margin=margin)
    reference = PairScores(chosen=torch.full((2,), -1.0), margin=torch.zeros(2))
    total = loss(
        dict.fromkeys(loss.scores, policy), dict.fromkeys(loss.scores, reference), kl_to_reference=torch.zeros(2)
    ).total
    return torch.autograd.grad(total, margin, allow_unused=True)[0] is not None


# Packages whose functions change with their version alone; those of a user may change at any time.
VERSIONED = ("segdpo", "segmentation_models_pytorch", "torch", "torchvision", "albumentations")


def candidates_key(config: DictConfig, weights: Path) -> str | None:
    """Return a name for everything that a network's candidates depend on; None if a function of the user's is involved.

    Args:
        config: the whole configuration.
        weights: the file of the network's weights; it counts by name, size and time.
    """
    return _key(config, _parts_of_candidates(config, weights))


def preferences_key(config: DictConfig, weights: Path | None) -> str | None:
    """Return a name for everything that mined preferences depend on; None if a function of the user's is involved.

    Args:
        config: the whole configuration.
        weights: the file of the weights of the network that candidates come from; None: they come from none.
    """
    if weights is None and asks_network(build(config.candidates)):
        return None
    own = {} if weights is None else _parts_of_candidates(config, weights)
    names = ("data", "candidates", "judge", "questions", "background")
    return _key(config, {**own, **{name: plain(config[name]) for name in names}})


def _parts_of_candidates(config: DictConfig, weights: Path) -> Plain:
    return {
        "candidates": plain(config.candidates),
        "model": plain(config.model),
        "preparation": preparation_of(config).stored(),
        "path": str(weights),
        "device": device_of(config),  # sums of another order change a few pixels
    }


def _key(config: DictConfig, parts: Plain) -> str | None:
    """Return a name for these parts, the data and the seed; None if one of them is not of `VERSIONED`."""
    targets = [str(value) for name, value in leaves(parts) if name.split(".")[-1] == "_target_"]
    if not all(target.split(".")[0] in VERSIONED for target in targets):
        return None
    return key_for(config, ("seed",), **parts, source_files=stamp_of_files(parts))
