"""Watches for likelihood displacement: the policy wins the comparison while it unlearns the chosen masks too."""

import logging
from collections import deque
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_only

log = logging.getLogger(__name__)

MEND = (
    "Mend: an anchor (loss=hinge_anchor, lse_anchor or dpo_nll), a larger beta (nearer to the reference), or a "
    "smaller learning rate."
)


class Displacement(Callback):
    """Says once, in words, that displacement has set in, and logs `train/displaced` (0 or 1).

    Displacement is a chosen gain s⁺_θ − s⁺_ref below 0: the policy likes the preferred masks less than the reference
    did, although the margin grows. It has set in when the mean of the last `window` logged values lies below
    `threshold` at `patience` logged steps in a row. Each logged value is itself the mean since the one before, over
    all processes, so every process comes to the same verdict.

    Args:
        threshold: in the units of the score; a little below 0, since the first steps wander about it.
        window: logged values in the mean.
        patience: logged steps that the mean has to stay below.
        metric: the chosen gain's name among what is logged; `margin`: that of h, said in the message.
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
        self._seen_at = 0

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Look at the chosen gain if it was logged at this step."""
        step: int = trainer.global_step
        every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]  # set by its logger connector
        # Between logged steps, and between the batches of one accumulated step, Lightning keeps the old value.
        if step == self._seen_at or every < 1 or step % every:
            return
        self._seen_at = step
        gain = trainer.callback_metrics.get(self.metric)
        if gain is None:
            return
        if self.sees(float(gain)) and not self.displaced:
            self.displaced = True
            _warn(self._in_words(trainer, step))
        pl_module.log("train/displaced", float(self.displaced), on_step=True, on_epoch=False)

    def sees(self, gain: float) -> bool:
        """Take in one more value; return whether the mean has been below the threshold for long enough."""
        self._gains.append(gain)
        full = len(self._gains) == self._gains.maxlen
        self._below = self._below + 1 if full and self.mean < self.threshold else 0
        return self._below >= self.patience

    @property
    def mean(self) -> float:
        """The mean of the values in the window."""
        return sum(self._gains) / len(self._gains)

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run has to know, so that it neither forgets nor repeats itself."""
        return {"displaced": self.displaced, "gains": list(self._gains), "below": self._below, "step": self._seen_at}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.displaced, self._below, self._seen_at = (state_dict[key] for key in ("displaced", "below", "step"))
        self._gains.clear()
        self._gains.extend(state_dict["gains"])

    def _in_words(self, trainer: Trainer, step: int) -> str:
        margin = float(trainer.callback_metrics.get(self.margin, 0))
        but = f", though its margin over the rejected ones grew (h {margin:+.3g})" if margin > 0 else ""
        return (
            f"Likelihood displacement has set in by step {step}: over the last {len(self._gains)} logged values the "
            f"policy likes the chosen masks less than the reference does (chosen gain {self.mean:+.3g}, below "
            f"{self.threshold:g}){but}. {MEND} (optimizer.lr={trainer.optimizers[0].param_groups[0]['lr']:g} now)"
        )


@rank_zero_only
def _warn(message: str) -> None:
    log.warning("%s", message)
