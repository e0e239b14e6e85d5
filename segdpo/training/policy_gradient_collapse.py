"""A policy that has collapsed: it predicts one class everywhere, and there is little left to learn from."""

from collections.abc import Sequence

import torch
from torch import Tensor

from segdpo.policies.pixel_policy import predicted_classes
from segdpo.regions import IGNORE


class CollapsedPolicyError(ValueError):
    """A policy predicts one class alone, in every image."""


class Collapse:
    """Counts rollouts in a row whose predicted masks all show one class and no other, and stops at `patience`.

    Images that are of one class in truth are no collapse: where gold is known, rollouts with such images alone do not
    count.
    """

    def __init__(self, patience: int | None) -> None:
        self.patience, self.rollouts = patience, 0

    def look(self, logits: Tensor, valid: Tensor, gold: Tensor | None, ids: Sequence[str]) -> Tensor:
        """Return for each image whether its predicted mask shows one class alone; stop if all do for too long."""
        masks = predicted_classes(logits)
        alone = _one_class(masks, valid)
        if gold is not None and bool(_one_class(gold, valid & (gold != IGNORE)).all()):
            return alone
        self.rollouts = self.rollouts + 1 if bool(alone.all()) else 0
        if self.patience is not None and self.rollouts >= self.patience:
            shown = torch.unique(masks[valid]).tolist()
            raise CollapsedPolicyError(
                f"Expected predicted masks of more than one class but in the last {self.rollouts} rollouts the policy "
                f"predicts class {', '.join(map(str, shown))} alone everywhere (last images: {', '.join(ids)}): it has "
                "collapsed. Lower optimizer.lr, raise algorithm.divergence.loss or algorithm.entropy, or look at what "
                "the reward gives such a mask; algorithm.collapse=null lets it go on."
            )
        return alone


def _one_class(masks: Tensor, inside: Tensor) -> Tensor:
    """Say of each mask [n, *spatial] whether all its pixels inside are of the same class."""
    low = masks.masked_fill(~inside, 255).flatten(1).amin(1)
    high = masks.masked_fill(~inside, 0).flatten(1).amax(1)
    return low >= high
