"""Preference training: a policy learns to score chosen masks above rejected ones, relative to a reference."""

import warnings
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from segdpo.data import Batch, PairBatch, RankingBatch
from segdpo.losses import LossTerms, PreferenceLoss
from segdpo.metrics import kl_per_pixel
from segdpo.models import hold_statistics as hold
from segdpo.preferences import whole_or_in_windows
from segdpo.scores import PairScores, Score
from segdpo.training.held_out import GAINS
from segdpo.training.references import Reference
from segdpo.training.schedules import BetaSchedule, ScheduledBeta
from segdpo.training.scoring import (
    Logits,
    PreferenceBatch,
    at_image_size,
    check_low_resolution,
    kl_of_batch,
    logits_of,
    score_batch,
    weight_of,
    without_logits,
)
from segdpo.training.task import MakeOptimizer, MakeScheduler, Task, batch_in_errors

SIDES = ("chosen", "rejected", "margin")
PAIRS = ("margin", "accuracy", "chosen_gain", "rejected_gain", "kl", *GAINS, "iou_gain")
"""What is logged of the pairs, under `pairs/NAME`."""


class PreferenceTask(Task):
    """Minimise a PreferenceLoss over the pairs (or rankings) of the batches.

    Args:
        policy: the network that is trained; maps images [images, channels, height, width] to logits
            [images, 1 or classes, height, width].
        reference: what the policy is compared with; called only if the loss needs it.
        loss: a PreferenceLoss.
        optimizer: called with the trainable parameters.
        scheduler: called with the optimiser, and with `steps=` if it takes it; None: a constant learning rate.
        beta: changes the loss's β during training; None: β stays as it is.
        hold_statistics: keep BatchNorm and dropout in evaluation mode, so that the policy starts as the reference.
        starts_at_reference: the policy has the reference's weights; check that h is 0 at the first step.
        watch: the score under which `score/…` and `pairs/chosen_gain` are logged; computed only when the Trainer logs.
            None: over the whole image, because displacement does not show over the disagreement alone.
        background: whether class 0 counts in IoU and Dice.
        start: the network that training started from, to which val/pairs/iou_gain is relative; None: to none.
        window: in validation and test, larger images are predicted in windows of this side; None: whole.
        low_resolution: in training, score the logits before the upsampling that ends both networks; same numbers.
    """

    def __init__(
        self,
        policy: nn.Module,
        reference: Reference,
        loss: PreferenceLoss,
        optimizer: MakeOptimizer,
        *,
        scheduler: MakeScheduler | None = None,
        beta: BetaSchedule | None = None,
        hold_statistics: bool = True,
        starts_at_reference: bool = False,
        watch: Score | None = None,
        background: bool = False,
        start: nn.Module | None = None,
        window: int | None = None,
        low_resolution: bool = False,
    ) -> None:
        super().__init__(_logged_names(loss), optimizer, scheduler, background, start, window)
        reference.check(loss)
        if low_resolution:
            check_low_resolution(policy)
        self._beta = None if beta is None else ScheduledBeta(loss, beta)
        self.policy, self.reference = policy, reference
        self.loss = loss if self._beta is None else self._beta.loss
        self.watched = Score() if watch is None else watch
        self._hold_statistics, self._low_resolution = hold_statistics, low_resolution
        self._check_first_margin = starts_at_reference
        self.train()

    def forward(self, image: Tensor) -> Tensor:
        """Return the policy's logits."""
        logits: Tensor = self.policy(image)
        return logits

    def training_step(self, batch: PreferenceBatch, batch_idx: int) -> Tensor:
        """Return the loss, scaled by this process's share of all processes' pairs."""
        weight = weight_of(batch)
        with batch_in_errors(batch.ids, self.global_step):
            scored = self._score(batch, watch=self.logs_this_step)
            self._check_margin(scored, batch)
            self._set_beta(scored, weight)
            terms = self._compute_loss(scored, weight)
            self.guard.watch(terms.total, terms.parts, batch.ids, self.global_step)
        self.count("train", self._values(scored, terms), weight)
        return terms.total * self.share(weight.sum())

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Count the loss, scores, pairs and the overlap with gold."""
        self._evaluate("val", batch)

    def test_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Count the loss, scores, pairs and the overlap with gold."""
        self._evaluate("test", batch)

    @torch.no_grad()
    def _evaluate(self, stage: str, batch: Batch) -> None:
        if not isinstance(batch, PairBatch | RankingBatch):
            self.count_overlap(stage, whole_or_in_windows(self.policy, batch.image, self.window), batch)
            return
        weight = weight_of(batch)
        with batch_in_errors(batch.ids, self.global_step):
            scored = self._score(batch, watch=True)
            terms = self._compute_loss(scored, weight)
        self.count(stage, self._values(scored, terms), weight)
        if scored.kl_per_image is not None:  # NaN: an image without a valid pixel
            self.count(stage, {"pairs/kl": scored.kl_per_image.nan_to_num()}, scored.kl_per_image.isfinite())
        logits = at_image_size(scored.logits)
        self.count_held_out(stage, logits, batch)
        self.count_overlap(stage, logits, batch)

    def _score(self, batch: PreferenceBatch, watch: bool) -> "_Scored":
        """Score the batch under reference and policy; with `watch`, also by the score that is logged."""
        # The reference first: its logits are freed before the policy's activations are allocated.
        low_resolution, window = self._forward_options
        # The reference may keep features for the policy: too many, with those of all windows.
        beside = self.loss.needs_reference and window is None
        with self.reference.beside_policy(self.policy) if beside else nullcontext():
            reference, reference_logits = self._score_reference(batch, watch)
            logits = logits_of(self.policy, batch.image, low_resolution, window)
        policy = score_batch(self.loss.scores, logits, batch, wants_chosen=self.loss.reads_chosen.policy)
        if watch and self.watched not in policy:
            with torch.no_grad():
                policy |= score_batch([self.watched], logits, batch)
        kl_to_reference = kl_per_image = None
        if reference_logits is not None:
            kl_to_reference = kl_of_batch(logits, reference_logits, batch) if self.loss.needs_reference_logits else None
            if not self.training:
                kl_per_image = kl_per_pixel(at_image_size(logits), at_image_size(reference_logits), batch.valid)
        margin = policy[self.loss.score].margin.detach()
        if reference is not None:
            margin = margin - reference[self.loss.score].margin
        return _Scored(logits, policy, reference, margin, kl_to_reference, kl_per_image, watch)

    @property
    def _forward_options(self) -> tuple[bool, int | None]:
        """Whether logits are those before the upsampling, as only in training, and the window, only in evaluation."""
        return (self._low_resolution, None) if self.training else (False, self.window)

    @torch.no_grad()
    def _score_reference(
        self, batch: PreferenceBatch, watch: bool
    ) -> tuple[Mapping[Score, PairScores] | None, Logits | None]:
        """Return the reference's scores, and its logits if the loss or the evaluation reads them."""
        if not self.loss.needs_reference:
            return None, None
        self.reference.low_resolution, self.reference.window = self._forward_options
        answer = self.reference(batch, self.policy)
        if isinstance(answer, Mapping):
            return answer, None
        watched = [self.watched] * watch
        wants_chosen = {*self.loss.reads_chosen.reference, *watched}
        scores = score_batch(dict.fromkeys([*self.loss.scores, *watched]), answer, batch, wants_chosen=wants_chosen)
        needs_logits = self.loss.needs_reference_logits or not self.training
        return without_logits(scores, wants_chosen), answer if needs_logits else None

    def _compute_loss(self, scored: "_Scored", weight: Tensor) -> LossTerms:
        return self.loss(scored.policy, scored.reference, weight=weight, kl_to_reference=scored.kl_to_reference)

    def _values(self, scored: "_Scored", terms: LossTerms) -> dict[str, Tensor]:
        """Return what is logged, [pairs] each."""
        values = {"loss": terms.total.detach().expand(len(scored.margin))}
        values |= {f"loss/{name}": part for name, part in terms.parts.items()}
        values |= {"pairs/margin": scored.margin, "pairs/accuracy": (scored.margin > 0).float()}
        if self._beta is not None:
            values["beta"] = self._beta.value.expand(len(scored.margin))
        return values | (_watched_values(scored, self.watched) if scored.watch else {})

    def _check_margin(self, scored: "_Scored", batch: PreferenceBatch) -> None:
        """At the first batch of a new training that starts at the reference, check that h is 0."""
        first, self._check_first_margin = self._check_first_margin, False
        fresh = self.global_step == 0 and self.trainer.ckpt_path is None
        if first and fresh and scored.reference is not None:
            _warn_unless_zero(scored.margin, self.loss.score, batch.image.shape[2:].numel())

    def _set_beta(self, scored: "_Scored", weight: Tensor) -> None:
        if self._beta is not None:
            margin, whole = self.sum_over_processes(torch.stack([(weight * scored.margin).sum(), weight.sum()]))
            self._beta.set(self.global_step, margin / whole.clamp(min=torch.finfo(whole.dtype).tiny))

    def train(self, mode: bool = True) -> "PreferenceTask":
        """Switch to training or evaluation; with `hold_statistics`, the policy stays in evaluation mode."""
        super().train(mode)
        if mode and self._hold_statistics:
            hold(self.policy)
        return self

    def setup(self, stage: str) -> None:
        """Silence two Lightning warnings about what is intended here."""
        for message in (r"Found \d+ module\(s\) in eval mode", "You have overridden `on_before_batch_transfer`"):
            warnings.filterwarnings("ignore", message=message)

    def on_fit_start(self) -> None:
        """Let the reference prepare for the scores that will be read."""
        if self.loss.needs_reference:
            self.reference.prepare(self, self.policy, list(dict.fromkeys([*self.loss.scores, self.watched])))

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Show the batch to the reference while it is on the CPU."""
        if self.loss.needs_reference and isinstance(batch, PairBatch | RankingBatch):
            self.reference.see(batch)
        return batch

    def optimizer_step(self, *args: Any, **keywords: Any) -> None:
        """Step, then update a moving reference; in a later hook, a checkpoint of this step would miss the update."""
        super().optimizer_step(*args, **keywords)
        if self.loss.needs_reference:
            self.reference.after_step(self.policy, self.global_step + 1)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the states of the reference and of β."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["reference"] = self.reference.state_dict()
        checkpoint["beta"] = {} if self._beta is None else self._beta.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the reference and β; the reference refuses a checkpoint trained against other weights."""
        super().on_load_checkpoint(checkpoint)
        self.load_reference(self.reference, checkpoint)
        if self._beta is not None:
            self._beta.load_state_dict(checkpoint.get("beta", {}))


@dataclass(frozen=True, eq=False)
class _Scored:
    """Scores of a batch's pairs under both networks.

    `margin` [pairs] is h, or the policy's own margin without a reference. `kl_to_reference` [pairs] is over agreeing
    pixels, for losses that read it; `kl_per_image` [images] is over all pixels, in evaluation. `watch`: the scores
    include the one that is logged.
    """

    logits: Logits
    policy: Mapping[Score, PairScores]
    reference: Mapping[Score, PairScores] | None
    margin: Tensor
    kl_to_reference: Tensor | None
    kl_per_image: Tensor | None
    watch: bool


def _logged_names(loss: PreferenceLoss) -> list[str]:
    """Return the names of everything that may be logged, without the stage."""
    parts = [f"loss/{name}" for name in ("objective", *loss.anchors)]
    scores = [f"score/{network}_{side}" for network in ("policy", "reference") for side in SIDES]
    return ["loss", *parts, *scores, *(f"pairs/{name}" for name in PAIRS if "iou" not in name), "beta"]


def _watched_values(scored: _Scored, score: Score) -> dict[str, Tensor]:
    """Return s⁺, s⁻ and s⁺ − s⁻ under both networks, and the gains s⁺_θ − s⁺_ref and s⁻_θ − s⁻_ref."""
    values = _sides("policy", scored.policy[score])
    # A user's own reference may not have the watched score.
    if scored.reference is None or score not in scored.reference:
        return values
    values |= _sides("reference", scored.reference[score])
    for side in ("chosen", "rejected"):
        values[f"pairs/{side}_gain"] = values[f"score/policy_{side}"] - values[f"score/reference_{side}"]
    return values


def _sides(network: str, pairs: PairScores) -> dict[str, Tensor]:
    return {f"score/{network}_{side}": getattr(pairs, side).detach() for side in SIDES}


def _warn_unless_zero(margin: Tensor, score: Score, pixels: int) -> None:
    """Warn with likely causes if any |h| exceeds 1e-4 (for summed scores: 1e-4 per pixel); waits for the device."""
    worst = float(margin.abs().max())
    if worst <= 1e-4 * (pixels if score.reduction == "sum" else 1):
        return
    rank_zero_warn(
        f"Expected the policy to start as the reference, h = 0 for every pair (and dpo = ln 2 = 0.693), but |h| is up "
        f"to {worst:.2g} at the first step. Likely causes: BatchNorm or dropout of the policy runs in training mode "
        "(keep hold_statistics=true); policy and reference were loaded from different checkpoints (give both the same "
        "file); cached reference scores that were computed on other devices (delete the cache folder). Training "
        "continues, but it does not start at the reference."
    )
