"""How like the chosen masks of held-out pairs the policy's masks are, relative to where training began."""

import torch
from torch import Tensor, nn

from segdpo.checks import IGNORE
from segdpo.data import RankingBatch
from segdpo.metrics import pair_ious
from segdpo.preferences import whole_or_in_windows
from segdpo.scores import predicted_classes
from segdpo.training.references import frozen_copy
from segdpo.training.scoring import PreferenceBatch

Key = tuple[tuple[str, ...], bytes]
GAINS = ("chosen_iou", "iou_margin")


class HeldOutGains:
    """Gains of the policy over the start for each held-out pair (of a ranking: its best and its worst mask).

    With the predicted mask P, `chosen_iou` is IoU(P, chosen) and `iou_margin` is IoU(P, chosen) − IoU(P, rejected), of
    the policy minus the same of the start. What the start predicts does not change: each batch is shown to it once.

    Args:
        start: the network that training began with; None: the policy's values are returned as they are.
        background: whether class 0 counts in IoU.
        window: the start predicts larger images in windows of this side; None: whole.
    """

    def __init__(self, start: nn.Module | None = None, background: bool = False, window: int | None = None) -> None:
        self._start, self._background, self._window = start, background, window
        self._copy: nn.Module | None = None
        self._kept: dict[Key, Tensor] = {}

    @torch.no_grad()
    def __call__(self, logits: Tensor, batch: PreferenceBatch) -> dict[str, Tensor]:
        """Return both gains, float32 [pairs] (for rankings [images]).

        Args:
            logits: the policy's, at the images' size.
            batch: pairs or rankings.
        """
        found = _values(logits, batch, self._background)
        if self._start is not None:
            numbers = batch.ranking_masks if isinstance(batch, RankingBatch) else batch.pair_masks
            key = tuple(batch.ids), torch.cat([batch.view, numbers.flatten()]).cpu().numpy().tobytes()
            if key not in self._kept:
                self._kept[key] = _values(self._predict(logits, batch), batch, self._background).cpu()
            found = found - self._kept[key].to(found)
        return dict(zip(GAINS, found, strict=True))

    def release(self) -> None:
        """Free the copy of the start; what it predicted stays."""
        self._copy = None

    def _predict(self, logits: Tensor, batch: PreferenceBatch) -> Tensor:
        """Return the start's logits, of a copy on the batch's device: the network itself may be used elsewhere."""
        assert self._start is not None
        if self._copy is None:
            self._copy = frozen_copy(self._start).to(logits.device)
        weights = next(self._copy.parameters(), batch.image)
        return whole_or_in_windows(self._copy, batch.image.to(weights.dtype), self._window)


def _values(logits: Tensor, batch: PreferenceBatch, background: bool) -> Tensor:
    """Return IoU with the chosen mask and the IoU margin, [2, pairs]."""
    predicted = predicted_classes(logits).masked_fill(~batch.valid, IGNORE)
    if isinstance(batch, RankingBatch):
        masks = predicted, batch.ranking[:, 0], batch.ranking[:, -1]
    else:
        masks = predicted[batch.image_index], batch.chosen, batch.rejected
    chosen, rejected = pair_ious(*masks, max(2, logits.shape[1]), background)
    return torch.stack([chosen, chosen - rejected])
