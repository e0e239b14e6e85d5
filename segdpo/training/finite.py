"""A loss that is no number stops the run and says which images, which part, and what to do."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

MEND = "lower the learning rate, clip gradients (trainer.gradient_clip_val=1), or look at these images and masks"


class NonFiniteLossError(ValueError):
    """A loss became NaN or infinite."""


@contextmanager
def naming(ids: Sequence[str], step: int) -> Iterator[None]:
    """Add step and images to whatever the loss finds wrong with a batch."""
    try:
        yield
    except NonFiniteLossError:
        raise
    except ValueError as error:
        raise ValueError(f"{error} (Step {step}, images: {', '.join(ids)}.)") from error


class FiniteGuard:
    """Looks at every loss: on a CPU at once, elsewhere one step later, so that no step waits for the device."""

    def __init__(self) -> None:
        self._pending: _Pending | None = None

    def watch(self, total: Tensor, parts: Mapping[str, Tensor], ids: Sequence[str], step: int) -> None:
        """Look at the values of the step before, and take note of these."""
        self.look()
        # One sum a part: it is finite only if every pair's value is.
        values = torch.stack([total.detach().float(), *(part.detach().float().sum() for part in parts.values())])
        self._pending = _Pending(values.isfinite(), ("loss", *parts), tuple(ids), step)
        if total.device.type == "cpu":
            self.look()

    def look(self) -> None:
        """Stop if the values noted last are no numbers."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.check()


class _Pending:
    """Flags on their way from the device, which goes on computing meanwhile."""

    def __init__(self, flags: Tensor, names: tuple[str, ...], ids: tuple[str, ...], step: int) -> None:
        self._names, self._ids, self._step = names, ids, step
        self._arrived: torch.cuda.Event | None = None
        self._flags = flags
        if flags.device.type == "cuda":
            # Pinned: a plain copy would wait for everything queued before it.
            self._flags = torch.empty(flags.shape, dtype=flags.dtype, pin_memory=True)
            self._flags.copy_(flags, non_blocking=True)
            self._arrived = torch.cuda.Event()
            self._arrived.record()

    def check(self) -> None:
        if self._arrived is not None:
            self._arrived.synchronize()
        if self._flags.all():
            return
        wrong = [name for name, fine in zip(self._names, self._flags.tolist(), strict=True) if not fine]
        raise NonFiniteLossError(
            f"Expected a finite loss but at step {self._step} {' and '.join(wrong)} became NaN or infinite on the "
            f"images {', '.join(self._ids)}; {MEND}."
        )
