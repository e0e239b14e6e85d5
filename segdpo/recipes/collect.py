"""Collect preferences: those of the data, or mined between candidates."""

import io
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig
from rich.progress import track
from torch import nn

from segdpo.data import (
    Candidates,
    Joined,
    MaskSource,
    Numbers,
    Record,
    RecordInfo,
    RecordSource,
    Splits,
    Subset,
    info_of,
)
from segdpo.files import exists, read_arrays, write_atomically
from segdpo.losses import PreferenceLoss
from segdpo.models import load_weights
from segdpo.preferences import Mined, Rule, for_best, for_ranking, for_rule, judged_masks
from segdpo.recipes.config import MISSING, Plain, build, key_for, leaves, plain, stamp_of_files
from segdpo.scores import PairScores

log = logging.getLogger(__name__)

# Code that changes only with a version. A user's own functions change without their names changing.
VERSIONED = ("segdpo", "segmentation_models_pytorch", "torch", "torchvision", "albumentations")


@dataclass(frozen=True, eq=False)
class KeptCandidates:
    """The masks of `mask_source`, made once for each record and then read from `folder`, one file a record.

    Whoever names the folder answers for its being of this source, its network's weights and its seed. Jobs may share
    it: what two of them write at the same time is the same.
    """

    mask_source: MaskSource
    folder: Path

    def __call__(self, record: Record, rng: np.random.Generator) -> Candidates:
        """Return the kept masks of the record, or make and keep them. Kept masks draw nothing from `rng`."""
        # Ids may hold what no file name may.
        path = self.folder / f"{sha256(record.id.encode('utf-8', 'surrogatepass')).hexdigest()[:32]}.npz"
        found = _read(path, record)
        if found is None:
            found = self.mask_source(record, rng)
            write_atomically(path, _packed(found))
        return found


def candidates_key(config: DictConfig, node: Plain) -> str | None:
    """Name all that the masks of this source depend on; None where that cannot be told.

    `node`: the source of masks, with the network that it asks in its place.
    """
    targets = [str(value) for name, value in leaves(node) if name.split(".")[-1] == "_target_"]
    if not all(target.split(".")[0] in VERSIONED for target in targets):
        return None
    return key_for(config, ("seed",), source=node, source_files=stamp_of_files(node))


def _read(path: Path, record: Record) -> Candidates | None:
    """Return the kept candidates of the record; None if there are none, or they are damaged."""
    if not exists(path):
        return None
    try:
        kept = read_arrays(path)
        masks, names = kept["masks"], kept["names"]
        if masks.shape[1:] != record.image.shape[:2] or names.dtype.kind != "U":
            raise ValueError(f"masks of shape {masks.shape} for an image of {record.image.shape}")
        return Candidates(masks, tuple(names.tolist()))
    except (ValueError, KeyError, TypeError) as error:
        log.warning("Kept candidates cannot be read and are made anew: %s (%s)", path, error)
        return None


def _packed(candidates: Candidates) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, masks=candidates.masks, names=np.asarray(candidates.names, dtype=np.str_))
    return buffer.getvalue()


WITH_WEIGHTS = "segdpo.preferences.with_weights"
PREDICT_WITH = "segdpo.preferences.predict_with"
PREDICT_IN_VIEWS = "segdpo.preferences.predict_in_views"
MC_DROPOUT = "segdpo.preferences.mc_dropout"


@dataclass(frozen=True, eq=False)
class Judged:
    """Records with preferences, the splits in their numbers, and what was judged.

    `images`: the numbers that the training images had before; `masks`: how many masks of each were judged. Where the
    data came with its preferences, `masks` is empty and `pairs` says how many there are.
    """

    source: RecordSource
    splits: Splits
    images: Numbers
    masks: Sequence[int] = ()
    pairs: int = 0


def with_preferences(
    config: DictConfig, source: RecordSource, splits: Splits, network: Plain, *, first: Judged | None = None
) -> Judged:
    """Collect preferences, between candidates of `network` where they ask one, for the training images selected.

    `first`: what an earlier round has judged. The same training images are judged anew, and validation and test images
    keep the preferences of then, so that all rounds are measured on the same.
    """
    judged = selected(config, source, splits, network) if first is None else first.images
    rule: Rule | None = build(config.questions)
    if rule is None:
        infos = [info_of(source, int(number), preferences=True) for number in judged]
        return Judged(source, replace(splits, train=judged), judged, pairs=sum(map(answers_given, infos)))
    # Candidates of later rounds are those of a policy that no other run has.
    mask_source = source_of_masks(config, network, keep=first is None)
    mine = partial(
        Mined, source, mask_source, build(config.judge), seed=config.seed, ranking=True, background=config.background
    )
    learned = Subset(mine(rule), judged.tolist())
    if first is None:
        # What was learned from wrong answers is measured on right ones.
        held_out = Subset(mine(unerring(rule)), np.concatenate([splits.val, splits.test]).tolist())
    else:
        held_out = Subset(first.source, np.concatenate([first.splits.val, first.splits.test]).tolist())
    ours = Joined([learned, held_out])
    # Mined at first sight and kept; done here, where there is a bar to watch.
    fresh = range(len(ours) if first is None else len(learned))
    found = [info_of(ours, index, preferences=True) for index in track(fresh, "preferences", transient=True)]
    log.info("Preferences for %d of %d images.", sum(bool(info.pairs) for info in found), len(found))
    masks = [judged_masks(learned[place]) for place in range(len(learned))]
    return Judged(ours, _renumbered(splits, len(judged)), judged, masks)


def answers_given(info: RecordInfo) -> int:
    """Return how many answers the preferences stand for that a record came with: its pairs, or its ranking."""
    return info.pairs or for_ranking(info.ranking or 0)


def unerring(rule: Rule) -> Rule:
    """Return a rule of which the better mask is always chosen, whatever `choice` it was given."""
    if isinstance(rule, partial) and "choice" in rule.keywords:
        kept = {name: value for name, value in rule.keywords.items() if name != "choice"}
        return partial(rule.func, *rule.args, **kept)
    return rule


def source_of_masks(config: DictConfig, network: Plain, *, keep: bool) -> MaskSource:
    """Build the source of masks of the configuration, `network` in it where it asks one.

    `keep`: read what another run with the same network has had from it, and keep what it makes.
    """
    named = plain(config.candidates)
    node = asking_the_reference(named, network, plain(config.transforms.eval))
    mask_source: MaskSource = build(node)
    if not keep or not asks_a_network(named):
        return mask_source
    key = candidates_key(config, node)
    return mask_source if key is None else KeptCandidates(mask_source, Path(config.cache) / "candidates" / key)


def selected(config: DictConfig, source: RecordSource, splits: Splits, network: Plain) -> Numbers:
    """Return the training images that are worth judging, by the selection of the configuration."""
    selection = build(asking_the_reference(plain(config.selection), network, plain(config.transforms.eval)))
    chosen: Sequence[int] = selection(Subset(source, splits.train.tolist()), seed=config.seed)
    return np.sort(splits.train[np.asarray(chosen, np.int64)])


def given() -> None:
    """Stand for the preferences that the data came with, where a yaml of conf/questions names a rule."""


def asking_the_reference(node: Plain, network: Plain, views: Plain | None = None) -> Plain:
    """Put the reference, as `network` builds it, wherever a source of masks asks a network and names no weights.

    `views`: the eval transform; through it the network sees images as it does in training and in evaluation.

    >>> node = {"predict": {"model": {"_target_": WITH_WEIGHTS, "path": MISSING}, "device": "cpu"}}
    >>> asking_the_reference(node, {"_target_": "my.reference"})
    {'predict': {'model': {'_target_': 'my.reference'}, 'device': 'cpu'}}
    """

    def visit(part: Any) -> Any:
        if isinstance(part, list):
            return [visit(one) for one in part]
        if not isinstance(part, dict):
            return part
        if _is_open(part):
            return network
        if views is not None and _is_open(part.get("model")):
            in_views = {"_target_": PREDICT_IN_VIEWS, "views": views, "device": part.get("device", "cpu")}
            if part.get("_target_") == PREDICT_WITH:
                return {**in_views, "model": network}
            if part.get("_target_") == MC_DROPOUT:  # which puts the network's dropout on before it asks
                return {**part, "model": network, "ask": {**in_views, "_partial_": True}}
        return {key: visit(value) for key, value in part.items()}

    found: Plain = visit(node)
    return found


def _is_open(part: Any) -> bool:
    """Say whether this is a network whose weights are left open."""
    return isinstance(part, dict) and part.get("_target_") == WITH_WEIGHTS and part.get("path") == MISSING


def asks_a_network(node: Plain) -> bool:
    """Say whether a source of masks asks a network that it names no weights of."""
    return asking_the_reference(node, {}) != node


def network_node(config: DictConfig, source: RecordSource, path: Path, *, adapter: bool = False) -> Plain:
    """Return what builds the network whose weights are at `path`; `adapter`: they are those of one with its adapter."""
    model = {**plain(config.model), "classes": len(source.classes)}
    node: Plain = {"_target_": f"{__name__}.loaded", "network": model, "path": str(path)}
    return {**node, "adapter": plain(config.adapter)} if adapter else node


def loaded(network: nn.Module, path: str, adapter: Callable[[nn.Module], nn.Module] | None = None) -> nn.Module:
    """Load the file's weights into the network, with its adapter if it has one, and return it."""
    whole = network if adapter is None else adapter(network)
    load_weights(path, whole)
    return whole


def _renumbered(splits: Splits, judged: int) -> Splits:
    """Return the splits in the numbers of the mined data set: train, then val, then test."""
    ends = np.cumsum([judged, len(splits.val), len(splits.test)])
    train, val, test = np.split(np.arange(ends[-1], dtype=np.uint32), ends[:-1])
    return replace(splits, train=train, val=val, test=test)


Price = Callable[[int], int]


def judgements(judged: Sequence[Judged], price: Price) -> int:
    """Return the judgements of all rounds: `price` of the masks of each image, or the pairs that the data came with."""
    return sum(sum(map(price, one.masks)) + one.pairs for one in judged)


def price_of(config: DictConfig) -> Price:
    """Return what an image costs a preference loss: what its rule asks; the best alone, if it reads nothing else."""
    if config.datamodule["items"]._target_.endswith("RankingDataset"):
        return for_ranking
    return for_rule_of(config) if reads_rejected(build(config.loss)) else for_chosen(config)


def for_rule_of(config: DictConfig) -> Price:
    """Return what the pairs of the rule cost."""
    return partial(for_rule, build(config.questions))


def for_chosen(config: DictConfig) -> Price:
    """Return what the chosen masks of the rule cost.

    The best is found without the worst, unless the judge may turn the two round or has to say how far they are apart.
    """
    needs_both = config.questions.get("choice") is not None or config.questions.get("min_gap", 0) > 0
    return for_best if config.questions._target_.endswith("best_worst") and not needs_both else for_rule_of(config)


def reads_rejected(loss: PreferenceLoss) -> bool:
    """Say whether the rejected masks matter to a loss at all; they do not to plain training on the chosen ones."""
    margin = torch.zeros(2, requires_grad=True)
    policy = PairScores(chosen=torch.full((2,), -1.0, requires_grad=True), margin=margin)
    reference = PairScores(chosen=torch.full((2,), -1.0), margin=torch.zeros(2))
    kl = torch.zeros(2)
    total = loss(dict.fromkeys(loss.scores, policy), dict.fromkeys(loss.scores, reference), kl_to_reference=kl).total
    return torch.autograd.grad(total, margin, allow_unused=True)[0] is not None
