"""Supervised training: the LightningModule and its losses."""

import inspect
import warnings
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segdpo.checks import IGNORE
from segdpo.data import Batch, SupervisedBatch
from segdpo.models import hold_statistics as hold
from segdpo.training.task import MakeOptimizer, MakeScheduler, Task, naming


def cross_entropy(logits: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    """Return −Σ_c share_c log p_c, its mean over the valid pixels; for class ids −log p of the class."""
    wanted = _channel_targets(logits, target, valid)
    if logits.shape[1] == 1:
        pixels = F.binary_cross_entropy_with_logits(logits[:, 0].float(), wanted[:, 0].float(), reduction="none")
    elif target.is_floating_point():
        pixels = F.cross_entropy(logits.float(), wanted, reduction="none")
    else:
        pixels = F.cross_entropy(logits.float(), wanted[:, 0].long(), reduction="none")
    return pixels.masked_fill(~valid, 0).sum() / valid.sum().clamp(min=1)


def dice(logits: Tensor, target: Tensor, valid: Tensor, *, smooth: float = 1.0) -> Tensor:
    """Return 1 − (2Σpy + smooth) / (Σp + Σy + smooth) over the valid pixels of each image and channel, and its mean.

    p are probabilities, y the target's shares (0 or 1 for class ids). `smooth`, in pixels, makes an absent class that
    is not predicted cost nothing.
    """
    wanted = _channel_targets(logits, target, valid)
    if logits.shape[1] > 1 and not target.is_floating_point():
        wanted = F.one_hot(wanted[:, 0].long(), logits.shape[1]).movedim(-1, 1)
    chances = logits.float().sigmoid() if logits.shape[1] == 1 else logits.float().softmax(1)
    chances = (chances * valid[:, None]).flatten(2)
    shares = (wanted.float() * valid[:, None]).flatten(2)
    both = (chances * shares).sum(2)
    return (1 - (2 * both + smooth) / (chances.sum(2) + shares.sum(2) + smooth)).mean()


def weighted_sum(
    logits: Tensor,
    target: Tensor,
    valid: Tensor,
    *,
    losses: Mapping[str, Callable[[Tensor, Tensor, Tensor], Tensor]],
    weights: Mapping[str, float],
) -> Tensor:
    """Return Σ weight · loss over named losses."""
    if losses.keys() != weights.keys():
        raise ValueError(
            f"Expected a weight for each of the losses {', '.join(losses)} but got weights for {', '.join(weights)}."
        )
    return torch.stack([weights[name] * loss(logits, target, valid) for name, loss in losses.items()]).sum()


def smp_loss(logits: Tensor, target: Tensor, valid: Tensor, *, loss: Callable[..., nn.Module]) -> Tensor:
    """Return a loss of segmentation_models_pytorch; `loss` is its class, with options bound but mode and ignore_index.

    The mode goes by the channels: one is "binary", more are "multiclass".
    """
    if target.is_floating_point():
        raise ValueError(
            "Expected class ids for a loss of segmentation_models_pytorch but got shares of raters; "
            "set datamodule.items.target=any, or use sft_loss=cross_entropy."
        )
    binary = logits.shape[1] == 1
    taken = inspect.signature(loss).parameters
    options: dict[str, object] = {"mode": "binary" if binary else "multiclass", "ignore_index": IGNORE}
    if "ignore_index" not in taken and not bool(valid.all()):
        raise ValueError(
            f"Expected every pixel to be valid, since {getattr(loss, 'func', loss).__name__} cannot ignore any, "
            f"but {int((~valid).sum())} are not; use another loss, or masks without 255 and views without borders."
        )
    function = loss(**{name: value for name, value in options.items() if name in taken})
    wanted = target.masked_fill(~valid, IGNORE)
    value: Tensor = function(logits.float(), wanted[:, None].float() if binary else wanted.long())
    return value


def _channel_targets(logits: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    """Return class ids [B,1,H,W] with 0 where invalid, or shares of the channels [B,channels,H,W]."""
    if not target.is_floating_point():
        return target.masked_fill(~valid, 0)[:, None]
    classes = max(2, logits.shape[1])
    if target.shape[1] != classes:
        raise ValueError(
            f"Expected shares of {classes} classes for {logits.shape[1]} channels but got {target.shape[1]}; "
            f"set model.classes={target.shape[1]}."
        )
    return target[:, 1:] if logits.shape[1] == 1 else target


SupervisedLoss = Callable[[Tensor, Tensor, Tensor], Tensor]


class SupervisedTask(Task):
    """Minimise `loss(logits, target, valid)` over SupervisedBatches.

    Means over several batches weigh each by its valid pixels, and so does the gradient over several processes: exact
    for losses that are a mean over pixels (cross-entropy). Of a ratio of sums, such as Dice, no mean over parts is
    exact; there the parts are weighed alike.

    Args:
        network: what is trained; maps images [B, channels, H, W] to logits [B, 1 or classes, H, W].
        loss: of (logits, target, valid): target is uint8 [B,H,W], or the raters' shares float32 [B,classes,H,W].
        optimizer: called with the trainable parameters.
        scheduler: called with the optimiser, and `steps=` if it asks for them; None: a constant rate.
        background: whether val/iou and val/dice count class 0.
        hold_statistics: keep BatchNorm and dropout as in evaluation, as preference training does.
    """

    def __init__(
        self,
        network: nn.Module,
        loss: SupervisedLoss,
        optimizer: MakeOptimizer,
        *,
        scheduler: MakeScheduler | None = None,
        background: bool = False,
        hold_statistics: bool = False,
    ) -> None:
        super().__init__(["loss"], optimizer, scheduler, background)
        self.network, self.loss = network, loss
        self._hold_statistics = hold_statistics
        self.train()

    def setup(self, stage: str) -> None:
        """Spare the user Lightning's doubt about modes that are meant."""
        if self._hold_statistics:
            warnings.filterwarnings("ignore", message=r"Found \d+ module\(s\) in eval mode")

    def train(self, mode: bool = True) -> "SupervisedTask":
        """Switch to training or evaluation; statistics that are held stay held."""
        super().train(mode)
        if mode and self._hold_statistics:
            hold(self.network)
        return self

    def forward(self, image: Tensor) -> Tensor:
        """Return the network's logits."""
        logits: Tensor = self.network(image)
        return logits

    def training_step(self, batch: SupervisedBatch, batch_idx: int) -> Tensor:
        """Return the loss, with this process's share of all processes' valid pixels."""
        pixels = batch.valid.sum()
        with naming(batch.ids, self.global_step):
            loss = self.loss(self.network(batch.image), batch.target, batch.valid)
            self.guard.watch(loss, {}, batch.ids, self.global_step)
        self.count("train", {"loss": loss[None]}, pixels[None])
        return loss * self.share(pixels)

    def validation_step(self, batch: SupervisedBatch, batch_idx: int) -> None:
        """Count the loss and the overlap with gold."""
        self._evaluate("val", batch)

    def test_step(self, batch: SupervisedBatch, batch_idx: int) -> None:
        """Count the loss and the overlap with gold."""
        self._evaluate("test", batch)

    @torch.no_grad()
    def _evaluate(self, stage: str, batch: Batch) -> None:
        logits = self.network(batch.image)
        if isinstance(batch, SupervisedBatch):
            loss = self.loss(logits, batch.target, batch.valid)
            self.count(stage, {"loss": loss[None]}, batch.valid.sum()[None])
        self.count_overlap(stage, logits, batch)
