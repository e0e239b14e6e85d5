"""IoU margins of held-out pairs, relative to the network that training started from."""

import torch
from torch import Tensor, nn

from segdpo.checks import IGNORE
from segdpo.data import RankingBatch
from segdpo.metrics import iou_margins
from segdpo.scores import predicted_classes
from segdpo.training.references import frozen_copy
from segdpo.training.scoring import PreferenceBatch

Key = tuple[tuple[str, ...], bytes]


class HeldOutMargins:
    """The policy's IoU margin of each held-out pair (of a ranking: of its best and worst mask), minus the start's.

    What the start predicts does not change: each batch is shown to it once, and its margins are kept.

    Args:
        start: the network that training started from; None: the policy's margins are returned as they are.
        background: whether class 0 counts in IoU.
    """

    def __init__(self, start: nn.Module | None = None, background: bool = False) -> None:
        self._start, self._background = start, background
        self._copy: nn.Module | None = None
        self._kept: dict[Key, Tensor] = {}

    @torch.no_grad()
    def __call__(self, logits: Tensor, batch: PreferenceBatch) -> Tensor:
        """Return the margins, float32 [pairs] (or [images] for rankings).

        Args:
            logits: the policy's, at the images' size.
            batch: pairs or rankings.
        """
        own = margins_of_batch(logits, batch, self._background)
        if self._start is None:
            return own
        numbers = batch.ranking_masks if isinstance(batch, RankingBatch) else batch.pair_masks
        key = tuple(batch.ids), torch.cat([batch.view, numbers.flatten()]).cpu().numpy().tobytes()
        if key not in self._kept:
            self._kept[key] = margins_of_batch(self._predict(logits, batch), batch, self._background).cpu()
        return own - self._kept[key].to(own)

    def release(self) -> None:
        """Free the copy of the start; the margins stay."""
        self._copy = None

    def _predict(self, logits: Tensor, batch: PreferenceBatch) -> Tensor:
        """Return the start's logits, with a copy on the batch's device: the network itself may be used elsewhere."""
        assert self._start is not None
        if self._copy is None:
            self._copy = frozen_copy(self._start).to(logits.device)
        weights = next(self._copy.parameters(), batch.image)
        found: Tensor = self._copy(batch.image.to(weights.dtype))
        return found


def margins_of_batch(logits: Tensor, batch: PreferenceBatch, background: bool = False) -> Tensor:
    """Return IoU(predicted, chosen) − IoU(predicted, rejected) of each pair, or of each ranking's best and worst mask.

    Args:
        logits: [images, 1 or classes, height, width].
        batch: pairs or rankings.
        background: whether class 0 counts in IoU.
    """
    predicted = predicted_classes(logits).masked_fill(~batch.valid, IGNORE)
    classes = max(2, logits.shape[1])
    if isinstance(batch, RankingBatch):
        return iou_margins(predicted, batch.ranking[:, 0], batch.ranking[:, -1], classes, background)
    return iou_margins(predicted[batch.image_index], batch.chosen, batch.rejected, classes, background)
