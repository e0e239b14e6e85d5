"""Checks of tensors and hyperparameters. Errors say what was expected, what was got, and how to fix it."""

import math
import warnings
from collections.abc import Iterable

import torch
from torch import Tensor

IGNORE = 255
"""The mask value of pixels that do not count, unless another is given."""


def ignored_value(ignore: int | None, channels: int) -> int:
    """Return the mask value of pixels that do not count: `ignore`, or IGNORE where that cannot be a class.

    >>> ignored_value(None, 21), ignored_value(-1, 300)
    (255, -1)
    """
    if ignore is None and channels > IGNORE:
        raise ValueError(
            f"Expected ignore=, the mask value of pixels that do not count, since {IGNORE}, the default, is a class of "
            f"a model with {channels} channels; pass ignore=-1, with masks of int16 or wider."
        )
    return IGNORE if ignore is None else ignore


def check_choice(name: str, value: object, choices: Iterable[str]) -> None:
    """Raise an error for a name that is not among `choices`."""
    if value not in (names := list(choices)):
        raise ValueError(f"Expected {name} to be one of {', '.join(names)} but got {value!r}.")


def is_finite(value: object) -> bool:
    """Return whether a value of a file is a number, and neither NaN, nor infinite, nor too large for a float.

    >>> [is_finite(value) for value in (1, 0.5, True, "1", float("nan"), 10**400)]
    [True, True, False, False, False, False]
    """
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300


def check_same_shape(name: str, tensor: Tensor, other_name: str, other: Tensor) -> None:
    """Raise an error for two tensors that PyTorch would broadcast against each other."""
    if tensor.shape != other.shape:
        raise ValueError(
            f"Expected {name} of the shape of {other_name}, {tuple(other.shape)}, but got {tuple(tensor.shape)}; "
            "broadcasting would combine every value with every other."
        )


def check_shapes(logits: Tensor, masks: dict[str, Tensor], image_index: Tensor | None) -> None:
    """Raise an error for tensors whose shapes, types or devices do not fit together."""
    if logits.ndim < 3 or not logits.is_floating_point():
        raise ValueError(
            f"Expected floating-point logits of shape [images, channels, *spatial] but got {_describe(logits)}; "
            "add the batch or channel dimension (logits[None]), and pass logits, not predicted classes."
        )
    for name, mask in masks.items():
        _check_mask(name, mask, logits)
        if mask.device != logits.device:
            raise ValueError(
                f"Expected {name} on the device of the logits, {logits.device}, but it is on {mask.device}; "
                "move it with .to(logits.device)."
            )
    (first, pairs), *others = [(name, len(mask)) for name, mask in masks.items()]
    for name, count in others:
        if count != pairs:
            raise ValueError(f"Expected as many {name} as {first} masks but got {count} and {pairs}.")
    if pairs == 0:
        raise ValueError("Expected at least one pair of masks but got none.")
    _check_image_index(image_index, images=len(logits), pairs=pairs)


def check_each(
    name: str, mask: Tensor, count: int, like: Tensor, whose: str, other: tuple[str, int] | None = None
) -> None:
    """Raise an error unless `mask` is one bool mask for each image, or for each pair.

    Args:
        name: of the argument.
        mask: bool [count, *spatial].
        count: how many images, or pairs, there are.
        like: masks of the right spatial shape.
        whose: what each mask belongs to, "image" or "pair".
        other: for the message, the argument with the other meaning and its number of masks.
    """
    expected = (count, *like.shape[1:])
    if mask.dtype == torch.bool and tuple(mask.shape) == expected:
        return
    hint = ""
    if other is not None and tuple(mask.shape) == (other[1], *like.shape[1:]):
        hint = f"; a mask for each {'image' if whose == 'pair' else 'pair'} is passed as {other[0]}="
    raise ValueError(
        f"Expected {name} to be a bool mask of shape {expected}, one for each {whose}, but got {_describe(mask)}{hint}."
    )


def check_logits(logits: Tensor) -> None:
    """Raise an error for logits that are not finite. Reads them once and waits for the device."""
    # A finite sum means finite terms, and the sum allocates nothing. A sum may overflow, hence the second check.
    if not torch.isfinite(logits.detach().sum(dtype=torch.float32)):
        _check_logits(logits.detach())


def scored_pairs(valid: Tensor, reads: bool) -> Tensor | None:
    """Return which pairs have a pixel that counts; None: all have. With `reads`, warn of those that have none.

    Args:
        valid: [pairs], the number of pixels that count, or whether there are any.
        reads: the values may be read; otherwise the result is never None.
    """
    scored = valid > 0
    if not reads:
        return scored
    if bool(scored.all()):
        return None
    # The same words each time, so that Python shows them once.
    warnings.warn(
        "Expected at least one valid pixel in every pair but some have none; they are left out: a loss gives them "
        "weight 0. Correct their valid masks and ignored pixels if that is not intended.",
        stacklevel=2,
    )
    return scored


def check_labels(labels: dict[str, Tensor], channels: int) -> int:
    """Return the highest class; raise an error for those that so many channels do not predict. Waits for the device."""
    classes, highest = max(2, channels), 0
    for name, label in labels.items():
        low, high = (int(end) for end in label.aminmax()) if label.numel() else (0, 0)
        highest = max(highest, high)
        if low < 0 or high >= classes:
            wrong = low if low < 0 else high
            raise ValueError(
                f"{name} has class {wrong} but the model predicts {classes} classes "
                f"({channels} channel{'s' * (channels > 1)}); "
                f"give the model {wrong + 1} classes or mark class {wrong} as ignore ({IGNORE}, or ignore={wrong})."
                if wrong > 0
                else f"{name} has class {wrong}; classes count from 0, and ignored pixels are {IGNORE} (or ignore=…)."
            )
    return highest


def check_finite(scores: list[Tensor], logits: Tensor) -> None:
    """Raise an error if scores are not finite because the logits are not; waits for the device."""
    if not all(bool(torch.isfinite(score).all()) for score in scores):
        _check_logits(logits.detach())


def check_range(
    name: str,
    value: object,
    *,
    least: float | None = None,
    above: float | None = None,
    below: float | None = None,
) -> None:
    """Raise an error for a hyperparameter outside its range; a tensor (a scheduled β) is not checked."""
    if isinstance(value, Tensor):
        return
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"Expected {name} to be a number but got {value!r}.")
    limits = (
        ("at least", least, lambda bound: value >= bound),
        ("above", above, lambda bound: value > bound),
        ("below", below, lambda bound: value < bound),
    )
    given = [(word, bound, holds) for word, bound, holds in limits if bound is not None]
    if not (math.isfinite(value) and all(holds(bound) for _, bound, holds in given)):
        words = " and ".join(["finite", *(f"{word} {bound:g}" for word, bound, _ in given)])
        raise ValueError(f"Expected {name} to be {words} but got {value}.")


def check_device(name: str, device: str) -> None:
    """Raise an error for a device that PyTorch does not know or that this machine does not have."""
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(
            f"Expected {name} to be a device of this machine, such as cpu, but got {device!r}: {reason}"
        ) from error


def _check_mask(name: str, mask: Tensor, logits: Tensor) -> None:
    space, got = tuple(logits.shape[2:]), tuple(mask.shape[1:])
    if (what := _of_another_form(name, mask, logits)) is not None:
        raise ValueError(f"Expected {name} of shape [pairs, *{list(space)}] but got {_describe(mask)}; {what}.")
    if mask.is_floating_point() or mask.is_complex():
        raise ValueError(
            f"Expected {name} to hold integer class ids but got {_describe(mask)}; "
            "threshold probabilities or take their argmax, then .to(torch.uint8)."
        )
    if mask.dtype in (torch.uint16, torch.uint32, torch.uint64):
        raise ValueError(
            f"Expected {name} as uint8 or a signed integer type but got {_describe(mask)}, for which PyTorch has few "
            "operations; convert it: .to(torch.int32)."
        )
    if got != space:
        raise ValueError(
            f"Expected {name} of shape [pairs, *{list(space)}], the spatial shape of the logits, "
            f"but got {_describe(mask)}; resize the logits to the masks, not the masks to the logits."
        )


def _of_another_form(name: str, mask: Tensor, logits: Tensor) -> str | None:
    """Return what to do with one-hot masks, masks with a channel, and logits of deep supervision."""
    classes, space, got = max(2, logits.shape[1]), tuple(logits.shape[2:]), tuple(mask.shape[1:])
    if got == (1, *space):
        return f"drop the channel dimension: {name}.squeeze(1)"
    if got in ((classes, *space), (*space, classes)):
        axis = 1 if got == (classes, *space) else -1
        return f"if these are one-hot, pass {name}.argmax({axis}); if the logits have no channel dimension, add it"
    if len(space) > 2 and got == space[1:]:
        return "the logits have one dimension more; with deep supervision pass those of the first output, logits[:, 0]"
    return None


def _check_image_index(image_index: Tensor | None, images: int, pairs: int) -> None:
    if image_index is None:
        if pairs != images:
            raise ValueError(
                f"Expected one pair an image but got {pairs} pairs for {images} images; "
                "give the image of each pair in image_index."
            )
        return
    if image_index.dtype not in (torch.int32, torch.int64) or tuple(image_index.shape) != (pairs,):
        raise ValueError(
            f"Expected image_index to be int64 of shape ({pairs},), one a pair, but got {_describe(image_index)}."
        )
    # Reading an index on a GPU would wait for it; there the gather checks its bounds.
    if image_index.device.type == "cpu" and not torch.compiler.is_compiling():
        low, high = int(image_index.min()), int(image_index.max())
        if low < 0 or high >= images:
            raise ValueError(
                f"Expected image_index from 0 to {images - 1}, as the logits hold {images} images, but it names image "
                f"{low if low < 0 else high}."
            )


def _describe(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} of shape {tuple(tensor.shape)}"


def _check_logits(logits: Tensor) -> None:
    wrong = ~torch.isfinite(logits)
    if wrong.any():
        image, channel, *_ = wrong.nonzero()[0].tolist()
        raise ValueError(
            f"Expected finite logits but {int(wrong.sum())} of {logits.numel()} are NaN or infinite, "
            f"the first in image {image}, channel {channel}; "
            "lower the learning rate, clip gradients, or inspect that image."
        )
