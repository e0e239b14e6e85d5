"""Losses of supervised training: functions of (logits, target, valid)."""

import inspect
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segdpo.checks import IGNORE

SupervisedLoss = Callable[[Tensor, Tensor, Tensor], Tensor]


def cross_entropy(logits: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    """Return the cross-entropy −Σ_c y_c log p_c, averaged over the valid pixels.

    Args:
        logits: [images, channels, height, width]; one channel means sigmoid, more mean softmax.
        target: class ids uint8 [images, height, width], or shares y_c of the classes
            [images, classes, height, width].
        valid: bool [images, height, width]; pixels that count.

    Returns:
        A scalar; 0 if no pixel is valid.

    >>> logits, target = torch.zeros(1, 1, 2, 2), torch.ones(1, 2, 2, dtype=torch.uint8)
    >>> cross_entropy(logits, target, target == 1)
    tensor(0.6931)
    """
    labels = _channel_targets(logits, target, valid)
    if logits.shape[1] == 1:
        pixels = F.binary_cross_entropy_with_logits(logits[:, 0].float(), labels[:, 0].float(), reduction="none")
    elif target.is_floating_point():
        pixels = F.cross_entropy(logits.float(), labels, reduction="none")
    else:
        pixels = F.cross_entropy(logits.float(), labels[:, 0].long(), reduction="none")
    return pixels.masked_fill(~valid, 0).sum() / valid.sum().clamp(min=1)


def dice(logits: Tensor, target: Tensor, valid: Tensor, *, smooth: float = 1.0) -> Tensor:
    """Return the soft Dice loss 1 − (2Σpy + smooth) / (Σp + Σy + smooth), averaged over images and channels.

    The sums are over the valid pixels of an image and channel; p are probabilities, y is 0 or 1, or the target's share.

    Args:
        logits: [images, channels, height, width]; one channel means sigmoid, more mean softmax.
        target: class ids uint8 [images, height, width], or shares of the classes [images, classes, height, width].
        valid: bool [images, height, width]; pixels that count.
        smooth: in pixels; with it, an absent class that is not predicted has loss 0.

    Returns:
        A scalar.
    """
    labels = _channel_targets(logits, target, valid)
    if logits.shape[1] > 1 and not target.is_floating_point():
        labels = F.one_hot(labels[:, 0].long(), logits.shape[1]).movedim(-1, 1)
    probabilities = logits.float().sigmoid() if logits.shape[1] == 1 else logits.float().softmax(1)
    probabilities = (probabilities * valid[:, None]).flatten(2)
    shares = (labels.float() * valid[:, None]).flatten(2)
    both = (probabilities * shares).sum(2)
    return (1 - (2 * both + smooth) / (probabilities.sum(2) + shares.sum(2) + smooth)).mean()


def weighted_sum(
    logits: Tensor,
    target: Tensor,
    valid: Tensor,
    *,
    losses: Mapping[str, SupervisedLoss],
    weights: Mapping[str, float],
) -> Tensor:
    """Return Σ weights[name] · losses[name](logits, target, valid)."""
    if losses.keys() != weights.keys():
        raise ValueError(
            f"Expected a weight for each of the losses {', '.join(losses)} but got weights for {', '.join(weights)}."
        )
    return torch.stack([weights[name] * loss(logits, target, valid) for name, loss in losses.items()]).sum()


def smp_loss(logits: Tensor, target: Tensor, valid: Tensor, *, loss: Callable[..., nn.Module]) -> Tensor:
    """Return a loss of segmentation_models_pytorch.

    Args:
        logits: [images, channels, height, width]; one channel sets mode="binary", more set mode="multiclass".
        target: class ids uint8 [images, height, width].
        valid: bool [images, height, width]; pixels that count.
        loss: the loss's class, with all options bound but `mode` and `ignore_index`.

    Raises:
        ValueError: for shares instead of class ids, or if the loss cannot ignore pixels and some are not valid.
    """
    if target.is_floating_point():
        raise ValueError(
            "Expected class ids for a loss of segmentation_models_pytorch but got shares of raters; "
            "set datamodule.items.target=any, or use sft_loss=cross_entropy."
        )
    binary = logits.shape[1] == 1
    parameters = inspect.signature(loss).parameters
    options: dict[str, object] = {"mode": "binary" if binary else "multiclass", "ignore_index": IGNORE}
    if "ignore_index" not in parameters and not bool(valid.all()):
        raise ValueError(
            f"Expected every pixel to be valid, since {getattr(loss, 'func', loss).__name__} cannot ignore any, "
            f"but {int((~valid).sum())} are not; use another loss, or masks without 255 and transforms without borders."
        )
    function = loss(**{name: value for name, value in options.items() if name in parameters})
    labels = target.masked_fill(~valid, IGNORE)
    value: Tensor = function(logits.float(), labels[:, None].float() if binary else labels.long())
    return torch.where(valid.any(), value, 0.0)  # the mean over no pixel is NaN


def _channel_targets(logits: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    """Return class ids [images, 1, H, W] with 0 where invalid, or shares of the channels [images, channels, H, W]."""
    if not target.is_floating_point():
        return target.masked_fill(~valid, 0)[:, None]
    classes = max(2, logits.shape[1])
    if target.shape[1] != classes:
        raise ValueError(
            f"Expected shares of {classes} classes for {logits.shape[1]} channels but got {target.shape[1]}; "
            f"set model.classes={target.shape[1]}."
        )
    return target[:, 1:] if logits.shape[1] == 1 else target
