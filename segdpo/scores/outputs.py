"""The logits in what a network returns."""

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from segdpo.kernels import LowResolution


@runtime_checkable
class HasLogits(Protocol):
    """An output with the logits as an attribute, as models of transformers return it."""

    @property
    def logits(self) -> Tensor:
        """The logits."""
        ...


ModelOutput = Tensor | HasLogits | Mapping[str, Any]
"""Logits, or an object with `.logits`, or a dict with "logits" or "out"."""


def logits_in(output: ModelOutput, name: str = "logits") -> Tensor:
    """Return the logits of an output; raise a TypeError that says what to pass where it is not clear.

    >>> import torch
    >>> logits_in({"out": torch.zeros(1, 2, 3, 3), "aux": torch.zeros(1, 2, 3, 3)}).shape
    torch.Size([1, 2, 3, 3])
    """
    if isinstance(output, Tensor):
        return output
    expected = f"Expected {name} as a tensor [images, channels, *spatial] but got"
    if isinstance(output, LowResolution):
        raise TypeError(
            f"{expected} a LowResolution; score it with segdpo.scores.low_resolution_pairs(low, pairs, score) and pass "
            "the scores of both networks to loss(policy, reference)."
        )
    # Before Mapping: outputs of Hugging Face are both.
    found = getattr(output, "logits", None)
    if found is None and isinstance(output, Mapping):
        found = next((output[key] for key in ("logits", "out") if key in output), None)
    if isinstance(found, Tensor):
        return found
    if isinstance(output, list | tuple):
        raise TypeError(
            f"{expected} a {type(output).__name__} of {len(output)}, such as the outputs of deep supervision; pass the "
            "one of the masks' size, mostly output[0], or add up the losses of several, each with masks of its size."
        )
    got = f"a dict of {', '.join(sorted(map(str, output)))}" if isinstance(output, Mapping) else type(output).__name__
    raise TypeError(f'{expected} {got}; pass the tensor, an object with .logits, or a dict with "logits" or "out".')
