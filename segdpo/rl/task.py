"""Policy-gradient training: the LightningModule, which draws masks and takes several optimiser steps a batch."""

import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, cast

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torch.optim import Optimizer

from segdpo.checks import IGNORE
from segdpo.data import Batch
from segdpo.losses import adaptive_coefficient
from segdpo.models import hold_statistics as hold
from segdpo.preferences import whole_or_in_windows
from segdpo.rl.algorithm import Algorithm
from segdpo.rl.rewards import Reward, RewardRequest, rewards_of
from segdpo.rl.rollout import Loss, Rollout, loss_of, mean_inside, roll_out
from segdpo.scores import entropy, kl, log_probs, predicted_classes
from segdpo.training import MakeOptimizer, MakeScheduler, Reference, Task, batch_in_errors

PARTS = ("surrogate", "divergence", "entropy", "value")
POLICY = ("kl", "entropy", "kl_to_old", "ratio", "clip_fraction", "one_class", "epochs", "gradient_norm")
LOGGED = (
    *("loss", "reward", "reward_std", "kl_coefficient"),
    *(f"loss/{name}" for name in PARTS),
    *(f"policy/{name}" for name in POLICY),
)
# Nats a pixel by which policies that are equal may differ in half precision.
TOLERANCE = 1e-3


class PolicyGradientTask(Task):
    """Maximise the reward of masks drawn from the policy; a batch is one rollout and several optimiser steps.

    `trainer.max_steps` counts optimiser steps, as in the other tasks. Means over the images of the rollouts are logged
    at the number of their last step.

    Args:
        policy: is trained; maps images [B, channels, H, W] to logits [B, 1 or classes, H, W].
        reference: which the divergence is measured from; not used if the algorithm has no divergence.
        reward: of masks.
        algorithm: see Algorithm.
        optimizer: called with the trainable parameters, those of the value head as a group of their own.
        classes: of the masks, background counted.
        in_channels: of the images.
        scheduler: called with the optimiser, and `steps=` if it has that parameter; None: a constant rate.
        background: whether val/iou and val/dice count class 0.
        hold_statistics: keep BatchNorm and dropout as in evaluation, so that ratios start at 1.
        starts_at_reference: the policy has the reference's weights: check that the divergence starts at 0.
        window: in validation and test, larger images are predicted in windows of this side; None: whole.
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
        window: int | None = None,
    ) -> None:
        super().__init__(LOGGED, self._with_groups(optimizer), scheduler, background, window=window)
        self.automatic_optimization = False
        if algorithm.divergence.needs_reference and reference is None:
            raise ValueError(f"Expected a reference for the divergence of {algorithm.name} but got none.")
        self.policy, self.reward, self.algorithm, self.classes = policy, reward, algorithm, classes
        self.reference = reference if algorithm.divergence.needs_reference else None
        self.value = None if algorithm.value is None else algorithm.value(classes=classes, in_channels=in_channels)
        if getattr(self.value, "per", "image") == "pixel" and algorithm.ratio != "pixel":
            raise ValueError(
                f"Expected algorithm.ratio=pixel for a value head of pixels but got {algorithm.ratio}; set "
                "algorithm.value.per=image."
            )
        self.kl_scale, self.rollouts, self.rewards_computed = 1.0, 0, 0
        self.collapse = Collapse(algorithm.collapse)
        self._hold_statistics, self._starts_at_reference = hold_statistics, starts_at_reference
        self.train()

    def setup(self, stage: str) -> None:
        """Refuse several devices and float16; silence Lightning's warning about modules in eval mode."""
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
        """Switch to training or evaluation; BatchNorm and dropout stay in evaluation if `hold_statistics`."""
        super().train(mode)
        if mode and self._hold_statistics:
            hold(self.policy)
        return self

    @property
    def logs_this_step(self) -> bool:
        """Whether to log after this rollout; the Trainer counts batches, and a batch is several steps."""
        trainer: Any = self.trainer
        every = trainer.log_every_n_steps
        return bool(trainer.fast_dev_run) or (every > 0 and (self.rollouts + 1) % every == 0)

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """Draw masks, then take optimiser steps on them for all epochs."""
        with batch_in_errors(batch.ids, self.global_step):
            rollout = self._roll_out(batch)
        single = self.collapse.check(rollout.logits, batch.valid, batch.gold, batch.ids)
        values = _values_of(rollout) | {"policy/one_class": single.float()}
        if self.reference is not None:
            divergence = self.algorithm.divergence
            values["kl_coefficient"] = torch.tensor(self.kl_scale * max(divergence.reward, divergence.loss))
        with batch_in_errors(batch.ids, self.global_step):
            values |= self._optimise(rollout, batch)
        weight = torch.ones(len(batch.ids), device=batch.image.device)
        self.count("train", {name: value.expand(len(weight)) for name, value in values.items()}, weight)
        self.log("step", float(self.global_step))  # otherwise loggers would count rollouts
        self.rollouts += 1
        self._adapt_coefficients(values)

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Accumulate the reward of predicted masks and their overlap with gold."""
        self._evaluate("val", batch)

    def test_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Accumulate the reward of predicted masks and their overlap with gold."""
        self._evaluate("test", batch)

    def on_validation_epoch_end(self) -> None:
        """Log the means at the current optimiser step."""
        super().on_validation_epoch_end()
        self.log("step", float(self.global_step))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Store the reference and the counters."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["reference"] = {} if self.reference is None else self.reference.state_dict()
        counters = (self.kl_scale, self.rollouts, self.rewards_computed, self.collapse.rollouts)
        checkpoint["policy_gradient"] = list(counters)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the reference and the counters; a checkpoint that was trained with another reference is refused."""
        super().on_load_checkpoint(checkpoint)
        if self.reference is not None:
            self.load_reference(self.reference, checkpoint)
        counters = checkpoint["policy_gradient"]
        self.kl_scale, self.rollouts, self.rewards_computed, self.collapse.rollouts = counters

    @torch.no_grad()
    def _roll_out(self, batch: Batch) -> Rollout:
        logits = self.policy(batch.image)
        reference_logits = None
        if self.reference is not None:
            found: Any = self.reference(cast(Any, batch), self.policy)
            if not isinstance(found, Tensor):
                raise ValueError(
                    f"Expected a reference that returns logits but {type(self.reference).__name__} returns none; "
                    "choose reference=frozen, ema, synchronised or adapter_off."
                )
            reference_logits = found
        self.rewards_computed += len(logits) * self.algorithm.masks
        return roll_out(
            batch,
            logits,
            reference_logits,
            self._value_of(batch.image, logits, batch.valid),
            self.algorithm,
            self.reward,
            classes=self.classes,
            kl_coefficient=self.kl_scale * self.algorithm.divergence.reward,
        )

    def _optimise(self, rollout: Rollout, batch: Batch) -> dict[str, Tensor]:
        """Take steps until the epochs are over, KL(old policy ‖ policy) exceeds target_kl, or max_steps is reached."""
        losses: list[Loss] = []
        norms: list[Tensor] = []
        for images in self._minibatches(len(batch.ids)):
            part = rollout.part(images)
            logits = self.policy(part.image)
            values = self._value_of(part.image, part.logits, part.valid)
            loss = loss_of(part, logits, values, self.algorithm, self.kl_scale * self.algorithm.divergence.loss)
            self.guard.watch(loss.total, loss.parts, batch.ids, self.global_step)
            losses.append(loss)
            self._check_start(loss)
            limit = self.algorithm.target_kl
            if limit is not None and float(loss.kl_to_old) > limit:
                break
            norms.append(self._step(loss.total))
            if 0 < self.trainer.max_steps <= self.global_step:
                break
        return _means_of_steps(losses, norms, self.algorithm.minibatches)

    def _minibatches(self, images: int) -> Iterator[Tensor]:
        for _ in range(self.algorithm.epochs):
            order = torch.randperm(images, device=self.device)
            yield from order.tensor_split(min(self.algorithm.minibatches, images))

    def _step(self, loss: Tensor) -> Tensor:
        optimizer: Any = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(loss)
        limit = self.algorithm.gradient_clip or float("inf")
        # Separately for the value head, since its large gradients would otherwise shorten the policy's steps.
        norms = [nn.utils.clip_grad_norm_(group["params"], limit) for group in optimizer.param_groups]
        optimizer.step()
        if (scheduler := self.lr_schedulers()) is not None:
            cast(Any, scheduler).step()
        if self.reference is not None:
            self.reference.after_step(self.policy, self.global_step)
        return norms[0]

    def _value_of(self, image: Tensor, logits: Tensor, valid: Tensor) -> Tensor | None:
        """Return the value head's estimate, from the image and the probabilities of the policy that drew the masks."""
        if self.value is None:
            return None
        values: Tensor = self.value(image, log_probs(logits.detach()).exp(), valid)
        return values.float()

    def _adapt_coefficients(self, values: dict[str, Tensor]) -> None:
        divergence = self.algorithm.divergence
        if divergence.target is not None:
            nats = float(values["policy/kl"].mean())
            self.kl_scale = adaptive_coefficient(self.kl_scale, nats, divergence.target, rate=divergence.rate)

    def _check_start(self, loss: Loss) -> None:
        """Warn once if the policy at the first step differs from the one that drew the masks, or from the reference."""
        if self.global_step > 0 or self.rollouts > 0:
            return
        # Not the ratio, whose mean is 1 for any policy.
        from_old, divergence = float(loss.kl_to_old), float(loss.parts.get("divergence", 0.0))
        if from_old > TOLERANCE or (self._starts_at_reference and abs(divergence) > TOLERANCE):
            rank_zero_warn(
                "Expected the policy at the first step to be the one that drew the masks, and the reference, but it is "
                f"{from_old:.2g} nats a pixel from the one and {divergence:.2g} from the other. Likely causes: "
                "BatchNorm or dropout of the policy runs in training mode (keep hold_statistics=true); policy and "
                "reference were loaded from different files."
            )

    @torch.no_grad()
    def _evaluate(self, stage: str, batch: Batch) -> None:
        logits = whole_or_in_windows(self.policy, batch.image, self.window)
        self.count_overlap(stage, logits, batch)
        index = torch.arange(len(logits), device=logits.device)
        request = RewardRequest(batch.image, predicted_classes(logits), index, batch.gold, batch.valid, self.classes)
        with batch_in_errors(batch.ids, self.global_step):
            self.count(stage, {"reward": rewards_of(self.reward, request)}, torch.ones_like(index))

    def _with_groups(self, make: MakeOptimizer) -> MakeOptimizer:
        """Give the value head a parameter group and a learning rate of its own."""

        def grouped(parameters: Iterable[nn.Parameter]) -> Optimizer:
            if self.value is None:
                return make(parameters)
            own = {id(parameter) for parameter in self.value.parameters()}
            policy = [parameter for parameter in parameters if id(parameter) not in own]
            groups = [{"params": policy}, {"params": list(self.value.parameters()), "lr": self.algorithm.value_lr}]
            return make(cast(Any, groups))

        return grouped


class CollapsedPolicyError(ValueError):
    """The policy predicts a single class in every image."""


class Collapse:
    """Counts consecutive rollouts whose predicted masks all have a single class, and raises at `patience`.

    Rollouts all of whose images have a single class in the gold mask are not counted.
    """

    def __init__(self, patience: int | None) -> None:
        self.patience, self.rollouts = patience, 0

    def check(self, logits: Tensor, valid: Tensor, gold: Tensor | None, ids: Sequence[str]) -> Tensor:
        """Return for each image whether its predicted mask has a single class.

        Raises:
            CollapsedPolicyError: that was so for all images in `patience` consecutive rollouts.
        """
        masks = predicted_classes(logits)
        single = _single_class(masks, valid)
        if gold is not None and bool(_single_class(gold, valid & (gold != IGNORE)).all()):
            return single
        self.rollouts = self.rollouts + 1 if bool(single.all()) else 0
        if self.patience is not None and self.rollouts >= self.patience:
            shown = torch.unique(masks[valid]).tolist()
            raise CollapsedPolicyError(
                f"Expected predicted masks of more than one class but in the last {self.rollouts} rollouts the policy "
                f"predicts class {', '.join(map(str, shown))} alone everywhere (last images: {', '.join(ids)}): it has "
                "collapsed. Lower optimizer.lr, raise algorithm.divergence.loss or algorithm.entropy, or check the "
                "reward of such a mask; algorithm.collapse=null turns this check off."
            )
        return single


def _single_class(masks: Tensor, inside: Tensor) -> Tensor:
    """Return for each mask [n, *spatial] whether all its pixels inside have the same class."""
    low = masks.masked_fill(~inside, 255).flatten(1).amin(1)
    high = masks.masked_fill(~inside, 0).flatten(1).amax(1)
    return low >= high


@torch.no_grad()
def _values_of(rollout: Rollout) -> dict[str, Tensor]:
    """Return, for each image, reward, its standard deviation, entropy a pixel and KL to the reference in nats."""
    values = {"reward": rollout.rewards.mean(1), "policy/entropy": mean_inside(entropy(rollout.logits), rollout.valid)}
    if rollout.rewards.shape[1] > 1:
        values["reward_std"] = rollout.rewards.std(1)
    if rollout.reference_logits is not None:
        nats = kl(rollout.logits, rollout.reference_logits).masked_fill(~rollout.valid, 0.0)
        values["policy/kl"] = nats.flatten(1).sum(1)
    return values


def _means_of_steps(losses: Sequence[Loss], norms: Sequence[Tensor], minibatches: int) -> dict[str, Tensor]:
    """Return means over the steps of a rollout, and KL(old policy ‖ policy) before the last one."""
    values = {"loss": torch.stack([loss.total.detach() for loss in losses]).mean()}
    for name in losses[0].parts:
        values[f"loss/{name}"] = torch.stack([loss.parts[name] for loss in losses]).mean()
    values["policy/ratio"] = torch.stack([loss.ratio for loss in losses]).mean()
    values["policy/clip_fraction"] = torch.stack([loss.clip_fraction for loss in losses]).mean()
    values["policy/kl_to_old"] = losses[-1].kl_to_old
    values["policy/epochs"] = torch.tensor(len(norms) / minibatches)
    if norms:
        values["policy/gradient_norm"] = torch.stack(list(norms)).mean()
    return values
