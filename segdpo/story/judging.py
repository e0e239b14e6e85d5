"""How many judgements a story has asked for, counted as people compare: two masks at a time."""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from omegaconf import DictConfig

from segdpo.losses.preference_loss import PreferenceLoss
from segdpo.pairs.judgements import for_best, for_ranking, for_rule
from segdpo.scores import PairScores
from segdpo.story.configs import build
from segdpo.story.preferences import Judged

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
    return partial(for_rule, build(config.rule))


def for_chosen(config: DictConfig) -> Price:
    """Return what the chosen masks of the rule cost.

    The best is found without the worst, unless the judge may turn the two round or has to say how far they are apart.
    """
    needs_both = config.rule.get("choice") is not None or config.rule.get("min_gap", 0) > 0
    return for_best if config.rule._target_.endswith("best_worst") and not needs_both else for_rule_of(config)


def reads_rejected(loss: PreferenceLoss) -> bool:
    """Say whether the rejected masks matter to a loss at all; they do not to plain training on the chosen ones."""
    margin = torch.zeros(2, requires_grad=True)
    policy = PairScores(chosen=torch.full((2,), -1.0, requires_grad=True), margin=margin)
    reference = PairScores(chosen=torch.full((2,), -1.0), margin=torch.zeros(2))
    drift = torch.zeros(2)
    total = loss(dict.fromkeys(loss.scores, policy), dict.fromkeys(loss.scores, reference), drift=drift).total
    return torch.autograd.grad(total, margin, allow_unused=True)[0] is not None
