"""Policy gradients: a segmenter draws masks, is told what they are worth, and makes the better ones more likely."""

import warnings
from collections.abc import Iterable, Iterator
from typing import Any, cast

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torch.optim import Optimizer

from segdpo.data.batch import Batch
from segdpo.losses.policy_gradient_advantages import adaptive_coefficient
from segdpo.models import freezing
from segdpo.policies.pixel_policy import log_probs, predicted_classes
from segdpo.rewards.request import Reward, RewardRequest, asked
from segdpo.training.finite import naming
from segdpo.training.policy_gradient_collapse import Collapse
from segdpo.training.policy_gradient_loss import Terms, terms_of
from segdpo.training.policy_gradient_rollout import Rollout, roll_out
from segdpo.training.policy_gradient_settings import Algorithm
from segdpo.training.policy_gradient_watching import NAMES, means_of_steps, values_of
from segdpo.training.references import Reference
from segdpo.training.task import MakeOptimizer, MakeScheduler, Task

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
        with naming(batch.ids, self.global_step):
            rollout = self._roll_out(batch)
        alone = self.collapse.look(rollout.logits, batch.valid, batch.gold, batch.ids)
        values = values_of(rollout) | {"policy/one_class": alone.float()}
        if self.reference is not None:
            prices = self.algorithm.divergence
            values["price"] = torch.tensor(self.scale * max(prices.reward, prices.loss))
        with naming(batch.ids, self.global_step):
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
        with naming(batch.ids, self.global_step):
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
