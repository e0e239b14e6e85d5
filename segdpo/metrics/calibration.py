"""Calibration: whether probabilities are frequencies. Expected calibration error and Brier score, over pixels."""

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from segdpo.checks import IGNORE, check_shapes
from segdpo.masks import bands

# Sums of whole multiples of 2**-24 are the same in any order; 10**11 pixels fit.
UNIT = 2**24


class Calibration(Metric):
    """Expected calibration error (ECE) and Brier score over all valid pixels of all images and processes.

    Confidence is the probability of the predicted class, with one channel as with several: at least one half for a
    sigmoid. Bins b are of equal width. `compute()` is

    * `ece`: Σ_b |accuracy_b − confidence_b| · n_b/n, in [0, 1] (Guo et al., "On calibration of modern neural
      networks", 2017);
    * `brier`: mean of ½ Σ_c (p_c − 1[c = y])² over classes c, in [0, 1]; (p − y)² for two classes (Brier, 1950);
    * `bins`: pixels n_b in each bin; `confidence`, `accuracy`: their means in it, NaN in an empty bin.

    Pixels beside each other are similar, and most are easy background: the numbers compare networks on the same images.

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
        """Add a batch.

        Args:
            logits: [B, 1 or classes, *spatial].
            gold: class ids [B, *spatial], 255 = ignore.
            valid: bool [B, *spatial]; left out: every pixel.
        """
        check_shapes(logits, {"gold": gold}, None)
        counted = gold != IGNORE if valid is None else valid & (gold != IGNORE)
        flat = logits.flatten(2), gold.flatten(1), counted.flatten(1)
        for pixels in bands(flat[1].shape[1], len(gold)):
            self._add(*(part[..., pixels] for part in flat))

    def _add(self, logits: Tensor, gold: Tensor, inside: Tensor) -> None:
        """Add pixels: logits [B, channels, n], gold and whether it counts [B, n]."""
        truth = gold[inside].long()
        probabilities = _probabilities(logits).movedim(1, -1)[inside]
        _check(probabilities, truth)
        confidence, predicted = probabilities.max(1)
        places = (confidence * len(self.bins)).long().clamp(max=len(self.bins) - 1)
        self.bins = self.bins.index_add(0, places, torch.ones_like(places))
        self.confidence = self.confidence.index_add(0, places, _whole(confidence))
        self.right = self.right.index_add(0, places, (predicted == truth).long())
        of_truth = probabilities.gather(1, truth[:, None])[:, 0]
        # Σ (p_c − 1[c = y])² = Σ p_c² − 2 p_y + 1.
        self.squares += _whole((probabilities.square().sum(1) - 2 * of_truth + 1) / 2).sum()

    def compute(self) -> dict[str, Tensor]:
        """Return the values over all pixels so far; NaN if there are none."""
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


def _check(probabilities: Tensor, truth: Tensor) -> None:
    wrong = int(probabilities.isnan().any(1).sum())
    if wrong:
        raise ValueError(
            f"Expected finite logits but {wrong} of {len(probabilities)} valid pixels have NaN or infinite ones; "
            "look at the network's weights, or at that image."
        )
    classes = probabilities.shape[1]
    for label in (int(truth.min()), int(truth.max())) if len(truth) else ():
        if not 0 <= label < classes:
            raise ValueError(
                f"gold has class {label} but the network predicts {classes} classes, 0 to {classes - 1}; evaluate a "
                f"network of these classes, or mark {label} as ignore ({IGNORE})."
            )
