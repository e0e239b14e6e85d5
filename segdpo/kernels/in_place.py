"""A gradient written over the logits: what has to be refused, whichever kernel writes it."""

from torch import Tensor


def check_own_memory(logits: Tensor) -> None:
    """Refuse logits of which several are one number in memory."""
    if any(step == 0 and size > 1 for step, size in zip(logits.stride(), logits.shape, strict=True)):
        raise ValueError(
            "Expected logits with memory of their own for in_place=True but got an expanded tensor of strides "
            f"{logits.stride()}; leave in_place out, or pass logits.contiguous()."
        )


def check_not_spent(spent: bool) -> None:
    """Refuse a second backward, whose logits the first has overwritten."""
    if spent:
        raise RuntimeError(
            "Expected one backward through scores with in_place=True, but this is the second: the first has "
            "written the gradient over the logits; leave in_place out to go backward twice."
        )
