"""Losses of supervised training, `loss(logits, target, valid)`; one channel is binary, more are classes.

`logits` [B, 1 or classes, H, W]; `target` class ids uint8 [B,H,W], or shares of the raters float32 [B,classes,H,W];
`valid` bool [B,H,W], False = the pixel does not count.
"""

import inspect
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segdpo.regions import IGNORE


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
