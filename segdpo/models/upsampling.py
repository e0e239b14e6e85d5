"""What a network returns before it upsamples: its last bilinear interpolation, held back while it runs."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode


class HeldBack(TorchFunctionMode):
    """Inside the `with`, a bilinear upsampling to `size` hands its input on as it is, and is remembered.

    Whatever calls it: nn.Upsample in a head, F.interpolate in a forward. Only for networks that return what they
    upsampled: `before` says whether they did.
    """

    def __init__(self, size: tuple[int, int]) -> None:
        super().__init__()
        self._size = size
        self._held: list[tuple[Tensor, bool]] = []

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Hold back what `F.interpolate` was asked for, if it is an upsampling to the size."""
        given = dict(kwargs or {})
        if func is F.interpolate:
            asked: dict[str, Any] = {"size": None, "scale_factor": None, "mode": "nearest", "align_corners": None}
            asked |= dict(zip(("input", "size", "scale_factor", "mode", "align_corners"), args, strict=False)) | given
            if self._is_ours(asked):
                self._held.append((asked["input"], bool(asked["align_corners"])))
                return asked["input"]
        return func(*args, **given)

    @property
    def some(self) -> bool:
        """Whether anything was held back."""
        return bool(self._held)

    def align_corners_of(self, logits: Tensor) -> bool | None:
        """Return how a network that returned `logits` would have upsampled them; None: it did not at the end."""
        return next((align for held, align in self._held if held is logits), None)

    def _is_ours(self, asked: Mapping[str, Any]) -> bool:
        small = asked["input"]
        if asked["mode"] != "bilinear" or asked.get("antialias") or small.ndim != 4 or small.shape[-2:] == self._size:
            return False
        if asked["size"] is not None:
            return _both(asked["size"]) == self._size
        # By a factor, pixels are read by the factor and not by the sizes: the same only where nothing is rounded.
        factors = _both(asked["scale_factor"])
        return all(side * f == whole for side, f, whole in zip(small.shape[-2:], factors, self._size, strict=True))


def _both(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, tuple | list | torch.Size) else (value, value)
