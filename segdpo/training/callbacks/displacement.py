"""A warning when likelihood displacement begins."""

import logging
from collections import deque
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_only

log = logging.getLogger(__name__)

FIX = (
    "Use an anchor (loss=hinge_anchor, lse_anchor or dpo_nll), a larger beta (nearer to the reference), or a "
    "smaller learning rate."
)


class Displacement(Callback):
    """Warn once when likelihood displacement begins, and log `train/displaced` (0 or 1).

    Displacement is a chosen gain s⁺_θ − s⁺_ref below 0: the policy scores the preferred masks lower than the reference
    did, although the margin grows. It counts as begun when the mean of the last `window` logged values is below
    `threshold` at `patience` logged steps in a row. Logged values are means over all processes, so every process
    decides alike.

    Args:
        threshold: in the units of the score; a little below 0, because the first steps fluctuate around 0.
        window: number of logged values in the mean.
        patience: number of logged steps for which the mean has to stay below the threshold.
        metric: name of the logged chosen gain.
        margin: name of the logged margin h, quoted in the message.
    """

    def __init__(
        self,
        threshold: float = -0.01,
        window: int = 5,
        patience: int = 3,
        metric: str = "train/pairs/chosen_gain",
        margin: str = "train/pairs/margin",
    ) -> None:
        if window < 1 or patience < 1:
            raise ValueError(f"Expected window and patience of at least 1 but got {window} and {patience}.")
        self.threshold, self.patience, self.metric, self.margin = threshold, patience, metric, margin
        self.displaced = False
        self._gains: deque[float] = deque(maxlen=window)
        self._below = 0
        self._last_step = 0

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Read the chosen gain if it was logged at this step."""
        step: int = trainer.global_step
        every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]  # set by its logger connector
        # Between logged steps, and between the batches of one accumulated step, Lightning keeps the old value.
        if step == self._last_step or every < 1 or step % every:
            return
        self._last_step = step
        gain = trainer.callback_metrics.get(self.metric)
        if gain is None:
            return
        if self.update(float(gain)) and not self.displaced:
            self.displaced = True
            rank_zero_only(log.warning)("%s", self._message(trainer, step))
        pl_module.log("train/displaced", float(self.displaced), on_step=True, on_epoch=False)

    def update(self, gain: float) -> bool:
        """Add a value; return whether the mean has been below the threshold for `patience` values."""
        self._gains.append(gain)
        full = len(self._gains) == self._gains.maxlen
        self._below = self._below + 1 if full and self.mean < self.threshold else 0
        return self._below >= self.patience

    @property
    def mean(self) -> float:
        """The mean of the values in the window."""
        return sum(self._gains) / len(self._gains)

    def state_dict(self) -> dict[str, Any]:
        """Return the window and the decision, so that a resumed run neither forgets nor repeats the warning."""
        return {"displaced": self.displaced, "gains": list(self._gains), "below": self._below, "step": self._last_step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the state of a checkpoint."""
        self.displaced, self._below, self._last_step = (state_dict[key] for key in ("displaced", "below", "step"))
        self._gains.clear()
        self._gains.extend(state_dict["gains"])

    def _message(self, trainer: Trainer, step: int) -> str:
        margin = float(trainer.callback_metrics.get(self.margin, 0))
        grew = f", although its margin over the rejected ones grew (h {margin:+.3g})" if margin > 0 else ""
        return (
            f"Likelihood displacement began by step {step}: over the last {len(self._gains)} logged values the policy "
            f"scores the chosen masks lower than the reference does (chosen gain {self.mean:+.3g}, below "
            f"{self.threshold:g}){grew}. {FIX} (optimizer.lr={trainer.optimizers[0].param_groups[0]['lr']:g} now)"
        )
