"""Preference training: the LightningModule."""

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
from segdpo.models import segmenter as freezing
from segdpo.scores import PairScores, Score
from segdpo.training.references import Reference
from segdpo.training.schedules import Beta, BoundBeta
from segdpo.training.scoring import (
    Logits,
    PreferenceBatch,
    at_image_size,
    check_network,
    kl_of_logits,
    logits_of,
    score_logits,
    weight_of,
    without_logits,
)
from segdpo.training.task import MakeOptimizer, MakeScheduler, Task, naming

SIDES = ("chosen", "rejected", "margin")
PAIRS = ("margin", "accuracy", "chosen_gain", "rejected_gain", "kl")


def names_of(loss: PreferenceLoss) -> list[str]:
    """Return the names of all that may be logged, without the stage."""
    parts = [f"loss/{name}" for name in ("objective", *loss.anchors)]
    scores = [f"score/{network}_{side}" for network in ("policy", "reference") for side in SIDES]
    return ["loss", *parts, *scores, *(f"pairs/{name}" for name in PAIRS), "beta"]


def watched_values(
    policy: Mapping[Score, PairScores], reference: Mapping[Score, PairScores] | None, score: Score
) -> dict[str, Tensor]:
    """Return the scores of both masks under both networks, and what each mask gained: s⁺_θ − s⁺_ref, s⁻_θ − s⁻_ref."""
    values = _sides("policy", policy[score])
    # A reference of somebody's own may not know the watched score.
    if reference is None or score not in reference:
        return values
    values |= _sides("reference", reference[score])
    gains = {side: values[f"score/policy_{side}"] - values[f"score/reference_{side}"] for side in SIDES[:2]}
    return values | {f"pairs/{side}_gain": gain for side, gain in gains.items()}


def _sides(network: str, pairs: PairScores) -> dict[str, Tensor]:
    return {f"score/{network}_{side}": getattr(pairs, side).detach() for side in SIDES}


TOLERANCE = 1e-4


def check_start(margin: Tensor, score: Score, pixels: int) -> None:
    """Warn if any |h| exceeds 1e-4 (of a summed score: 1e-4 a pixel), and say what it may come from.

    `margin` is h of the first batch, one a pair. Looks at the values, so it waits for the device.
    """
    worst = float(margin.abs().max())
    if worst <= TOLERANCE * (pixels if score.reduction == "sum" else 1):
        return
    rank_zero_warn(
        f"Expected the policy to start as the reference, h = 0 for every pair (and dpo = ln 2 = 0.693), but |h| is up "
        f"to {worst:.2g} at the first step. Likely causes: BatchNorm or dropout of the policy runs in training mode "
        "(keep hold_statistics=true); policy and reference were loaded from different checkpoints (give both the same "
        "file); a cache of reference scores that was filled on other devices or in another precision (delete the cache "
        "folder). Training goes on, but what it starts from is not the reference."
    )


@dataclass(frozen=True, eq=False)
class Scored:
    """What a batch's pairs score under both networks.

    `margin` is h, or the policy's margin without a reference; `kl_to_reference` is that of the pairs, if the loss needs
    it; `kl` is the images' divergence from the reference, computed in evaluation alone.
    """

    logits: Logits
    policy: Mapping[Score, PairScores]
    reference: Mapping[Score, PairScores] | None
    kl_to_reference: Tensor | None
    kl: Tensor | None
    margin: Tensor
    closely: bool


class PreferenceTask(Task):
    """Minimise a PreferenceLoss over the pairs (or rankings) of the batches.

    Args:
        policy: what is trained; maps images [B, channels, H, W] to logits [B, 1 or classes, H, W].
        reference: what it is held against; asked only if the loss needs one.
        loss: a PreferenceLoss.
        optimizer: called with the trainable parameters.
        scheduler: called with the optimiser, and `steps=` if it asks for them; None: a constant rate.
        beta: changes the loss's β during training; None: it stays what it is.
        hold_statistics: keep BatchNorm and dropout as in evaluation, so that the policy starts as the reference.
        starts_at_reference: the policy has the reference's weights: check that h is 0 at the first step.
        watch: the score under which `score/…` and `pairs/chosen_gain` are logged. Over the whole image, since over the
            disagreement alone no displacement shows. Worked out only when the Trainer logs.
        background: whether val/iou and val/dice count class 0.
        low_resolution: in training, score logits before the upsampling that ends both networks; same numbers.
    """

    def __init__(
        self,
        policy: nn.Module,
        reference: Reference,
        loss: PreferenceLoss,
        optimizer: MakeOptimizer,
        *,
        scheduler: MakeScheduler | None = None,
        beta: Beta | None = None,
        hold_statistics: bool = True,
        starts_at_reference: bool = False,
        watch: Score | None = None,
        background: bool = False,
        low_resolution: bool = False,
    ) -> None:
        super().__init__(names_of(loss), optimizer, scheduler, background)
        reference.check(loss)
        if low_resolution:
            check_network(policy)
        self._beta = None if beta is None else BoundBeta(loss, beta)
        self.policy, self.reference = policy, reference
        self.loss = loss if self._beta is None else self._beta.loss
        self._hold_statistics, self._starts_at_reference = hold_statistics, starts_at_reference
        self._low_resolution = low_resolution
        self.watched = Score() if watch is None else watch
        self._start_is_checked = False
        self.train()

    def setup(self, stage: str) -> None:
        """Spare the user Lightning's doubts about two things that are meant."""
        for doubt in (r"Found \d+ module\(s\) in eval mode", "You have overridden `on_before_batch_transfer`"):
            warnings.filterwarnings("ignore", message=doubt)

    def forward(self, image: Tensor) -> Tensor:
        """Return the policy's logits."""
        logits: Tensor = self.policy(image)
        return logits

    def train(self, mode: bool = True) -> "PreferenceTask":
        """Switch to training or evaluation; statistics that are held stay held."""
        super().train(mode)
        if mode and self._hold_statistics:
            freezing.hold_statistics(self.policy)
        return self

    def training_step(self, batch: PreferenceBatch, batch_idx: int) -> Tensor:
        """Return the loss, with this process's share of all processes' pairs."""
        weight = weight_of(batch)
        with naming(batch.ids, self.global_step):
            scored = self._score(batch, closely=self.logs_this_step)
            self._check_start(scored, batch)
            self._set_beta(scored, weight)
            terms = self._combine(scored, weight)
            self.guard.watch(terms.total, terms.parts, batch.ids, self.global_step)
        self.count("train", self._values(scored, terms), weight)
        return terms.total * self.share(weight.sum())

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Count the loss, scores, pairs and overlap with gold."""
        self._evaluate("val", batch)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Count the loss, scores, pairs and overlap with gold."""
        self._evaluate("test", batch)

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Show the batch to the reference while looking at it is cheap."""
        if self.loss.needs_reference and isinstance(batch, PairBatch | RankingBatch):
            self.reference.see(batch)
        return batch

    def on_fit_start(self) -> None:
        """Let the reference get ready: a cache is filled here, before there is any other progress bar."""
        if self.loss.needs_reference:
            self.reference.prepare(self, self.policy, list(dict.fromkeys([*self.loss.scores, self.watched])))

    def optimizer_step(self, *args: Any, **keywords: Any) -> None:
        """Step, then let a moving reference follow; in no later hook, or a checkpoint of this step would miss it."""
        super().optimizer_step(*args, **keywords)
        if self.loss.needs_reference:
            self.reference.after_step(self.policy, self.global_step + 1)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what the reference and β need to go on."""
        checkpoint["reference"] = self.reference.state_dict()
        checkpoint["beta"] = {} if self._beta is None else self._beta.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on; a checkpoint that was trained against another reference is refused."""
        self.reference.load_state_dict(checkpoint.get("reference", {}))
        if self._beta is not None:
            self._beta.load_state_dict(checkpoint.get("beta", {}))

    @torch.no_grad()
    def _ask_reference(
        self, batch: PreferenceBatch, closely: bool
    ) -> tuple[Mapping[Score, PairScores] | None, Logits | None]:
        """Return the reference's scores, and its logits if the loss or an evaluation reads them."""
        if not self.loss.needs_reference:
            return None, None
        self.reference.low_resolution = self._low_resolution and self.training
        answer = self.reference(batch, self.policy)
        if isinstance(answer, Mapping):
            return answer, None
        watched = [self.watched] * closely
        wanted = {*self.loss.reads_chosen.reference, *watched}
        scores = score_logits(dict.fromkeys([*self.loss.scores, *watched]), answer, batch, wants_chosen=wanted)
        kept = without_logits(scores, wanted)
        return kept, answer if self.loss.needs_reference_logits or not self.training else None

    def _score(self, batch: PreferenceBatch, closely: bool) -> Scored:
        # First the reference: its logits are gone before the policy's activations come.
        with self.reference.beside_policy(self.policy) if self.loss.needs_reference else nullcontext():
            reference, reference_logits = self._ask_reference(batch, closely)
            logits = logits_of(self.policy, batch.image, self._low_resolution and self.training)
        policy = score_logits(self.loss.scores, logits, batch, wants_chosen=self.loss.reads_chosen.policy)
        if closely and self.watched not in policy:
            with torch.no_grad():
                policy |= score_logits([self.watched], logits, batch)
        kl_to_reference = kl = None
        if reference_logits is not None:
            if self.loss.needs_reference_logits:
                kl_to_reference = kl_of_logits(logits, reference_logits, batch)
            if not self.training:
                kl = kl_per_pixel(at_image_size(logits), at_image_size(reference_logits), batch.valid)
        margin = policy[self.loss.score].margin.detach()
        if reference is not None:
            margin = margin - reference[self.loss.score].margin
        return Scored(logits, policy, reference, kl_to_reference, kl, margin, closely)

    def _combine(self, scored: Scored, weight: Tensor) -> LossTerms:
        return self.loss(scored.policy, scored.reference, weight=weight, kl_to_reference=scored.kl_to_reference)

    @torch.no_grad()
    def _evaluate(self, stage: str, batch: Batch) -> None:
        if isinstance(batch, PairBatch | RankingBatch):
            weight = weight_of(batch)
            with naming(batch.ids, self.global_step):
                scored = self._score(batch, closely=True)
                terms = self._combine(scored, weight)
            self.count(stage, self._values(scored, terms), weight)
            if scored.kl is not None:  # NaN: an image without a valid pixel
                self.count(stage, {"pairs/kl": scored.kl.nan_to_num()}, scored.kl.isfinite())
            self.count_overlap(stage, at_image_size(scored.logits), batch)
        else:
            self.count_overlap(stage, self.policy(batch.image), batch)

    def _values(self, scored: Scored, terms: LossTerms) -> dict[str, Tensor]:
        values = {"loss": terms.total.detach().expand(len(scored.margin))}
        values |= {f"loss/{name}": part for name, part in terms.parts.items()}
        values |= {"pairs/margin": scored.margin, "pairs/accuracy": (scored.margin > 0).float()}
        if self._beta is not None:
            values["beta"] = self._beta.value.expand(len(scored.margin))
        return values | (watched_values(scored.policy, scored.reference, self.watched) if scored.closely else {})

    def _check_start(self, scored: Scored, batch: PreferenceBatch) -> None:
        """Check once, at the first batch of a training that starts from the reference, that h is 0."""
        fresh = self.global_step == 0 and not self._start_is_checked and self.trainer.ckpt_path is None
        self._start_is_checked = True
        if fresh and self._starts_at_reference and scored.reference is not None:
            check_start(scored.margin, self.loss.score, batch.image.shape[2:].numel())

    def _set_beta(self, scored: Scored, weight: Tensor) -> None:
        if self._beta is not None:
            margin, whole = self.sum_over_processes(torch.stack([(weight * scored.margin).sum(), weight.sum()]))
            self._beta.set(self.global_step, margin / whole.clamp(min=torch.finfo(whole.dtype).tiny))
