"""Policy gradients: the LightningModule, its loss and what it watches."""

import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torch.optim import Optimizer

from segdpo.checks import IGNORE
from segdpo.data import Batch
from segdpo.losses import adaptive_coefficient, cut_off, kl_k1, kl_k3, per_ratio
from segdpo.models import segmenter as freezing
from segdpo.rl.algorithm import Algorithm
from segdpo.rl.rewards import Reward, RewardRequest, asked
from segdpo.rl.rollout import Rollout, roll_out
from segdpo.scores import entropy, kl, log_prob, log_probs, predicted_classes
from segdpo.training import MakeOptimizer, MakeScheduler, Reference, Task, batch_in_errors


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


@dataclass(frozen=True, eq=False)
class Terms:
    """The loss, its parts before they are weighed, and what else is worth watching; all but the total detached."""

    total: Tensor
    parts: dict[str, Tensor]
    watched: dict[str, Tensor]


def terms_of(rollout: Rollout, logits: Tensor, values: Tensor | None, algorithm: Algorithm, price: float) -> Terms:
    """Return the loss of the policy's `logits` now on masks drawn earlier; `price`: of a nat, in the loss."""
    index, masks = rollout.image_index(), rollout.masks.flatten(0, 1)
    inside = rollout.valid.index_select(0, index)
    own = log_prob(logits / algorithm.temperature, masks, index)
    old = log_prob(rollout.logits / algorithm.temperature, masks, index)
    surrogate, cut = _surrogate(own, old, rollout.advantages.flatten(0, 1), inside, algorithm)
    parts = {"surrogate": surrogate}
    if price > 0 and rollout.reference_logits is not None:
        # The divergence is the untempered policy's, whatever the masks were drawn at.
        plain = own if algorithm.temperature == 1 else log_prob(logits, masks, index)
        parts["divergence"] = _divergence(rollout, logits, plain, old, inside, algorithm.divergence.estimator)
    parts["entropy"] = mean_inside(entropy(logits), rollout.valid).mean()
    if values is not None:
        parts["value"] = _value(values, rollout)
    weights = {"surrogate": 1.0, "divergence": price, "entropy": -algorithm.entropy, "value": 1.0}
    total = sum((weights[name] * part for name, part in parts.items() if weights[name] != 0), logits.new_zeros(()))
    with torch.no_grad():
        moved = mean_inside(kl(rollout.logits, logits), rollout.valid).mean()
        ratio = mean_inside((own - old).exp(), inside).mean()
    watched = {"moved": moved, "ratio": ratio, "clip_fraction": cut}
    return Terms(total, {name: part.detach() for name, part in parts.items()}, watched)


def mean_inside(values: Tensor, inside: Tensor) -> Tensor:
    """Return the mean of each row [n, *spatial] over the pixels inside; 0 where there are none."""
    return torch.where(inside, values, 0.0).flatten(1).sum(1) / inside.flatten(1).sum(1).clamp(min=1)


def _surrogate(
    own: Tensor, old: Tensor, advantages: Tensor, inside: Tensor, algorithm: Algorithm
) -> tuple[Tensor, Tensor]:
    """Return the mean over masks, and the share of ratios that are clipped; at r = 1, the same for every ratio."""
    ours, theirs = (per_ratio(one, inside, algorithm.ratio) for one in (own, old))
    loss = algorithm.surrogate(ours, theirs, advantages)
    cut = cut_off(loss, ours, theirs, advantages).float()
    if algorithm.ratio == "pixel":
        return mean_inside(loss, inside).mean(), mean_inside(cut, inside).mean()
    # The mask's own ratio has the gradient of a sum over pixels, the others that of a mean.
    pixels = inside.flatten(1).sum(1).clamp(min=1) if algorithm.ratio == "mask" else 1
    return (loss / pixels).mean(), cut.mean()


def _divergence(rollout: Rollout, logits: Tensor, own: Tensor, old: Tensor, inside: Tensor, estimator: str) -> Tensor:
    """Return KL(policy ‖ reference) a pixel; of samples weighed by p / p_old, so that its gradient is right too."""
    assert rollout.reference_logits is not None
    if estimator == "exact":
        return mean_inside(kl(logits, rollout.reference_logits), rollout.valid).mean()
    theirs = log_prob(rollout.reference_logits, rollout.masks.flatten(0, 1), rollout.image_index())
    estimate = kl_k1(theirs - own) if estimator == "k1" else kl_k3(theirs - own)
    return mean_inside((own - old).exp() * estimate, inside).mean()


def _value(values: Tensor, rollout: Rollout) -> Tensor:
    """Return ½ (V − R)², mean over masks, and pixels where values are theirs."""
    rewards = rollout.rewards.view(*rollout.rewards.shape, *[1] * (values.ndim - 1))
    error = 0.5 * (values[:, None] - rewards).square()
    return error.mean() if values.ndim == 1 else mean_inside(error.mean(1), rollout.valid).mean()


PARTS = ("surrogate", "divergence", "entropy", "value")
POLICY = ("kl", "entropy", "moved", "ratio", "clip_fraction", "one_class", "epochs", "gradient_norm")
NAMES = ("loss", "reward", "reward_std", "price", *(f"loss/{name}" for name in PARTS), *(f"policy/{n}" for n in POLICY))


@torch.no_grad()
def values_of(rollout: Rollout) -> dict[str, Tensor]:
    """Return the reward, its deviation within an image, the policy's entropy a pixel and its divergence an image."""
    values = {"reward": rollout.rewards.mean(1), "policy/entropy": mean_inside(entropy(rollout.logits), rollout.valid)}
    if rollout.rewards.shape[1] > 1:
        values["reward_std"] = rollout.rewards.std(1)
    if rollout.reference_logits is not None:
        nats = kl(rollout.logits, rollout.reference_logits).masked_fill(~rollout.valid, 0.0)
        values["policy/kl"] = nats.flatten(1).sum(1)
    return values


def means_of_steps(found: Sequence[Terms], norms: Sequence[Tensor], minibatches: int) -> dict[str, Tensor]:
    """Return means over the steps of a rollout; `moved` is how far the policy was at its last look."""
    values = {"loss": torch.stack([terms.total.detach() for terms in found]).mean()}
    for name in found[0].parts:
        values[f"loss/{name}"] = torch.stack([terms.parts[name] for terms in found]).mean()
    for name in ("ratio", "clip_fraction"):
        values[f"policy/{name}"] = torch.stack([terms.watched[name] for terms in found]).mean()
    values["policy/moved"] = found[-1].watched["moved"]
    values["policy/epochs"] = torch.tensor(len(norms) / minibatches)
    if norms:
        values["policy/gradient_norm"] = torch.stack(list(norms)).mean()
    return values


# Nats a pixel that half precision may make of none.
TOLERANCE = 1e-3


class PolicyGradientTask(Task):
    """Maximise a reward of masks drawn from the policy. A batch is one rollout, and several steps of the optimiser.

    `trainer.max_steps` counts those steps, as in the other tasks; what is logged are means over the images of the
    rollouts, at the number of their last step.

    Args:
        policy: what is trained; maps images [B, channels, H, W] to logits [B, 1 or classes, H, W].
        reference: what its divergence is priced against; None unless the algorithm has such a price.
        reward: what a mask is worth.
        algorithm: see Algorithm.
        optimizer: called with the trainable parameters, those of the value head as a group of their own.
        classes: of the masks, background counted.
        in_channels: of the images.
        scheduler: called with the optimiser, and `steps=` if it asks for them; None: a constant rate.
        background: whether val/iou and val/dice count class 0.
        hold_statistics: keep BatchNorm and dropout as in evaluation, so that ratios start at 1.
        starts_at_reference: the policy has the reference's weights: check that the divergence starts at 0.
    """

    def __init__(
        self,
        policy: nn.Module,
        reference: Reference | None,
        reward: Reward,
        algorithm: Algorithm,
        optimizer: MakeOptimizer,
        *,
        classes: int,
        in_channels: int = 3,
        scheduler: MakeScheduler | None = None,
        background: bool = False,
        hold_statistics: bool = True,
        starts_at_reference: bool = False,
    ) -> None:
        super().__init__(NAMES, self._with_groups(optimizer), scheduler, background)
        self.automatic_optimization = False
        if algorithm.divergence.asks_reference and reference is None:
            raise ValueError(f"Expected a reference for the divergence of {algorithm.name} but got none.")
        self.policy, self.reward, self.algorithm, self.classes = policy, reward, algorithm, classes
        self.reference = reference if algorithm.divergence.asks_reference else None
        self.value = None if algorithm.value is None else algorithm.value(classes=classes, in_channels=in_channels)
        if getattr(self.value, "per", "image") == "pixel" and algorithm.ratio != "pixel":
            raise ValueError(
                f"Expected algorithm.ratio=pixel for a value head of pixels but got {algorithm.ratio}; set "
                "algorithm.value.per=image."
            )
        self.scale, self.rollouts, self.rewards_asked = 1.0, 0, 0
        self.collapse = Collapse(algorithm.collapse)
        self._hold_statistics, self._starts_at_reference = hold_statistics, starts_at_reference
        self.train()

    def setup(self, stage: str) -> None:
        """Refuse what rollouts are not made for, and spare the user Lightning's doubt about modes that are meant."""
        warnings.filterwarnings("ignore", message=r"Found \d+ module\(s\) in eval mode")
        if self.trainer.world_size > 1 or self.trainer.precision == "16-mixed":
            raise ValueError(
                "Expected one device, in 32-true or bf16 precision, for a policy gradient but got "
                f"{self.trainer.world_size} devices and {self.trainer.precision}; set trainer.devices=1 and "
                "trainer.precision=bf16-mixed."
            )

    def forward(self, image: Tensor) -> Tensor:
        """Return the policy's logits."""
        logits: Tensor = self.policy(image)
        return logits

    def train(self, mode: bool = True) -> "PolicyGradientTask":
        """Switch to training or evaluation; statistics that are held stay held."""
        super().train(mode)
        if mode and self._hold_statistics:
            freezing.hold_statistics(self.policy)
        return self

    @property
    def logs_this_step(self) -> bool:
        """Whether the Trainer logs after this rollout: it counts batches where a batch is several steps."""
        trainer: Any = self.trainer
        every = trainer.log_every_n_steps
        return bool(trainer.fast_dev_run) or (every > 0 and (self.rollouts + 1) % every == 0)

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """Draw masks, then take the steps of all epochs on them."""
        with batch_in_errors(batch.ids, self.global_step):
            rollout = self._roll_out(batch)
        alone = self.collapse.look(rollout.logits, batch.valid, batch.gold, batch.ids)
        values = values_of(rollout) | {"policy/one_class": alone.float()}
        if self.reference is not None:
            prices = self.algorithm.divergence
            values["price"] = torch.tensor(self.scale * max(prices.reward, prices.loss))
        with batch_in_errors(batch.ids, self.global_step):
            values |= self._learn(rollout, batch)
        weight = torch.ones(len(batch.ids), device=batch.image.device)
        self.count("train", {name: value.expand(len(weight)) for name, value in values.items()}, weight)
        self.log("step", float(self.global_step))  # else loggers would count rollouts
        self.rollouts += 1
        self._adapt(values)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Count the reward of predicted masks and their overlap with gold."""
        self._evaluate("val", batch)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Count the reward of predicted masks and their overlap with gold."""
        self._evaluate("test", batch)

    def on_validation_epoch_end(self) -> None:
        """Log what was counted, at the step that it belongs to."""
        super().on_validation_epoch_end()
        self.log("step", float(self.global_step))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what is needed to go on."""
        checkpoint["reference"] = {} if self.reference is None else self.reference.state_dict()
        counted = (self.scale, self.rollouts, self.rewards_asked, self.collapse.rollouts)
        checkpoint["policy_gradient"] = list(counted)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on; a checkpoint that was trained against another reference is refused."""
        if self.reference is not None:
            self.reference.load_state_dict(checkpoint.get("reference", {}))
        counted = checkpoint["policy_gradient"]
        self.scale, self.rollouts, self.rewards_asked, self.collapse.rollouts = counted

    @torch.no_grad()
    def _roll_out(self, batch: Batch) -> Rollout:
        logits = self.policy(batch.image)
        reference_logits = None
        if self.reference is not None:
            answer: Any = self.reference(cast(Any, batch), self.policy)
            if not isinstance(answer, Tensor):
                raise ValueError(
                    f"Expected a reference that answers with logits but {type(self.reference).__name__} gives none; "
                    "choose reference=frozen, ema, synchronised or adapter_off."
                )
            reference_logits = answer
        self.rewards_asked += len(logits) * self.algorithm.masks
        return roll_out(
            batch,
            logits,
            reference_logits,
            self._value_of(batch.image, logits, batch.valid),
            self.algorithm,
            self.reward,
            classes=self.classes,
            price=self.scale * self.algorithm.divergence.reward,
        )

    def _learn(self, rollout: Rollout, batch: Batch) -> dict[str, Tensor]:
        """Take steps until the epochs are over, the policy has moved far enough, or max_steps is reached."""
        found: list[Terms] = []
        norms: list[Tensor] = []
        for images in self._minibatches(len(batch.ids)):
            part = rollout.part(images)
            logits = self.policy(part.image)
            values = self._value_of(part.image, part.logits, part.valid)
            terms = terms_of(part, logits, values, self.algorithm, self.scale * self.algorithm.divergence.loss)
            self.guard.watch(terms.total, terms.parts, batch.ids, self.global_step)
            found.append(terms)
            self._check_start(terms)
            limit = self.algorithm.target_kl
            if limit is not None and float(terms.watched["moved"]) > limit:
                break
            norms.append(self._step(terms.total))
            if 0 < self.trainer.max_steps <= self.global_step:
                break
        return means_of_steps(found, norms, self.algorithm.minibatches)

    def _minibatches(self, images: int) -> Iterator[Tensor]:
        for _ in range(self.algorithm.epochs):
            order = torch.randperm(images, device=self.device)
            yield from order.tensor_split(min(self.algorithm.minibatches, images))

    def _step(self, loss: Tensor) -> Tensor:
        optimizer: Any = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(loss)
        limit = self.algorithm.gradient_clip or float("inf")
        # The value head for itself: its error would else decide how far the policy may go.
        norms = [nn.utils.clip_grad_norm_(group["params"], limit) for group in optimizer.param_groups]
        optimizer.step()
        if (scheduler := self.lr_schedulers()) is not None:
            cast(Any, scheduler).step()
        if self.reference is not None:
            self.reference.after_step(self.policy, self.global_step)
        return norms[0]

    def _value_of(self, image: Tensor, logits: Tensor, valid: Tensor) -> Tensor | None:
        """Ask the value head, which sees the policy that drew the masks."""
        if self.value is None:
            return None
        values: Tensor = self.value(image, log_probs(logits.detach()).exp(), valid)
        return values.float()

    def _adapt(self, values: dict[str, Tensor]) -> None:
        divergence = self.algorithm.divergence
        if divergence.target is not None:
            nats = float(values["policy/kl"].mean())
            self.scale = adaptive_coefficient(self.scale, nats, divergence.target, rate=divergence.rate)

    def _check_start(self, terms: Terms) -> None:
        """Warn once if the policy that is trained does not start as the one that draws, or as the reference."""
        if self.global_step > 0 or self.rollouts > 0:
            return
        # Not the mean ratio, which is 1 whatever the policy.
        moved, divergence = float(terms.watched["moved"]), float(terms.parts.get("divergence", 0.0))
        if moved > TOLERANCE or (self._starts_at_reference and abs(divergence) > TOLERANCE):
            rank_zero_warn(
                "Expected the policy at the first step to be the one that drew the masks, and the reference, but it is "
                f"{moved:.2g} nats a pixel from the one and {divergence:.2g} from the other. Likely causes: BatchNorm "
                "or dropout of the policy runs in training mode (keep hold_statistics=true); policy and reference were "
                "loaded from different files."
            )

    @torch.no_grad()
    def _evaluate(self, stage: str, batch: Batch) -> None:
        logits = self.policy(batch.image)
        self.count_overlap(stage, logits, batch)
        index = torch.arange(len(logits), device=logits.device)
        request = RewardRequest(batch.image, predicted_classes(logits), index, batch.gold, batch.valid, self.classes)
        with batch_in_errors(batch.ids, self.global_step):
            self.count(stage, {"reward": asked(self.reward, request)}, torch.ones_like(index))

    def _with_groups(self, make: MakeOptimizer) -> MakeOptimizer:
        """Give the value head a group of parameters, and a rate, of its own."""

        def grouped(parameters: Iterable[nn.Parameter]) -> Optimizer:
            if self.value is None:
                return make(parameters)
            own = {id(parameter) for parameter in self.value.parameters()}
            policy = [parameter for parameter in parameters if id(parameter) not in own]
            groups = [{"params": policy}, {"params": list(self.value.parameters()), "lr": self.algorithm.value_lr}]
            return make(cast(Any, groups))

        return grouped
