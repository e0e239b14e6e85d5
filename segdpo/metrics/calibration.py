"""Whether a network is as often right as it is sure: expected calibration error and Brier score, over pixels."""

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from segdpo.checks import IGNORE, check_shapes

# Sums of whole multiples of 2**-24 are the same in any order; 10**11 pixels fit.
UNIT = 2**24


class Calibration(Metric):
    """Expected calibration error (ECE) and Brier score over all valid pixels of all images and processes.

    Confidence is the probability of the predicted class, for one channel as for several: a sigmoid's is never under
    one half. Bins are of equal width. `compute()` is

    * `ece`: Σ over bins of |accuracy − confidence| · share of the pixels, in [0, 1];
    * `brier`: mean of ½ Σ over classes of (probability − truth)², in [0, 1]; (p − y)² for two classes;
    * `bins`: pixels in each bin; `confidence`, `accuracy`: their means in it, NaN in an empty bin.

    Pixels beside each other are alike, and most are easy background: the numbers compare networks on the same
    images, and say little alone.

    Args:
        bins: how many there are.
        options: torchmetrics' own, such as `sync_on_compute=False` where one process measures alone.

    >>> calibration = Calibration(bins=2)
    >>> calibration.update(torch.tensor([[[[2.0, 2.0]]]]), torch.tensor([[[1, 0]]]))
    >>> calibration.compute()["ece"]  # sure by 0.88, right by half
    tensor(0.3808)
    """

    full_state_update = False
    bins: Tensor
    confidence: Tensor
    right: Tensor
    squares: Tensor

    def __init__(self, bins: int = 15, **options: Any) -> None:
        super().__init__(**options)
        if bins < 1:
            raise ValueError(f"Expected bins to be at least 1 but got {bins}.")
        for state in ("bins", "confidence", "right"):
            self.add_state(state, torch.zeros(bins, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("squares", torch.tensor(0), dist_reduce_fx="sum")

    @torch.no_grad()
    def update(self, logits: Tensor, gold: Tensor, valid: Tensor | None = None) -> None:
        """Add a batch: logits [B, 1 or classes, *spatial], class ids [B, *spatial] with 255 = ignore, bool `valid`."""
        check_shapes(logits, {"gold": gold}, None)
        inside = gold != IGNORE if valid is None else valid & (gold != IGNORE)
        truth = gold[inside].long()
        chances = _probabilities(logits).movedim(1, -1)[inside]
        _check(chances, truth)
        confidence, predicted = chances.max(1)
        places = (confidence * len(self.bins)).long().clamp(max=len(self.bins) - 1)
        self.bins = self.bins.index_add(0, places, torch.ones_like(places))
        self.confidence = self.confidence.index_add(0, places, _whole(confidence))
        self.right = self.right.index_add(0, places, (predicted == truth).long())
        of_truth = chances.gather(1, truth[:, None])[:, 0]
        # Σ (p_c − 1[c = y])² = Σ p_c² − 2 p_y + 1.
        self.squares += _whole((chances.square().sum(1) - 2 * of_truth + 1) / 2).sum()

    def compute(self) -> dict[str, Tensor]:
        """Return what all pixels so far say; NaN if there are none."""
        pixels = self.bins.sum()
        confidence = (self.confidence.double() / UNIT / self.bins).float()
        accuracy = self.right / self.bins
        gaps = (accuracy - confidence).abs().nan_to_num(0) * self.bins
        return {
            "ece": gaps.sum() / pixels,
            "brier": self.squares / UNIT / pixels,
            "bins": self.bins,
            "confidence": confidence,
            "accuracy": accuracy,
        }


def _probabilities(logits: Tensor) -> Tensor:
    logits = logits.float()
    if logits.shape[1] == 1:
        return torch.cat([(-logits).sigmoid(), logits.sigmoid()], dim=1)
    return logits.softmax(1)


def _whole(values: Tensor) -> Tensor:
    return (values * UNIT).round().long()


def _check(chances: Tensor, truth: Tensor) -> None:
    wrong = int(chances.isnan().any(1).sum())
    if wrong:
        raise ValueError(
            f"Expected finite logits but {wrong} of {len(chances)} valid pixels have NaN or infinite ones; "
            "look at the network's weights, or at that image."
        )
    for label in (int(truth.min()), int(truth.max())) if len(truth) else ():
        if not 0 <= label < chances.shape[1]:
            raise ValueError(
                f"gold has class {label} but the network predicts {chances.shape[1]} classes, 0 to "
                f"{chances.shape[1] - 1}; evaluate a network of these classes, or mark {label} as ignore ({IGNORE})."
            )
