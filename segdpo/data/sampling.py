"""The order of an epoch: drawn from (seed, epoch), and resumed in its middle."""

import logging
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from torch.utils.data import DataLoader, DistributedSampler

log = logging.getLogger(__name__)

# Steps of a training whose waiting is measured, and how many seconds of it are worth a warning.
MEASURED_STEPS, LONG = 20, 10.0


class Draw(NamedTuple):
    """What a data set is asked for: number `item` in epoch `epoch`.

    The epoch travels with the number, since persistent workers are not told of a new one.
    """

    item: int
    epoch: int = 0


# Called a DistributedSampler so that Lightning leaves it alone: its wrapper would hide set_epoch.
class EpochSampler(DistributedSampler[Draw]):
    """Draws every item once an epoch, in an order that depends on (seed, epoch) alone; a million items take 4 MB.

    Args:
        count: how many items there are.
        seed: of the order.
        shuffle: False: in order.
        rank: of this process.
        ranks: how many processes there are. Each takes every `ranks`-th item; the few of a shuffled epoch that would
            make their numbers unequal are left out (others each epoch). Unshuffled, all are kept.

    >>> list(EpochSampler(2, shuffle=False))
    [Draw(item=0, epoch=0), Draw(item=1, epoch=0)]
    """

    def __init__(self, count: int, *, seed: int = 0, shuffle: bool = True, rank: int = 0, ranks: int = 1) -> None:
        if not 0 <= rank < ranks:
            raise ValueError(f"Expected a rank from 0 to {ranks - 1} but got {rank}.")
        self._kept = count - count % ranks if shuffle else count
        if self._kept < 1:
            raise ValueError(f"Expected at least {ranks} items, one a process, but got {count}.")
        self.count, self.seed, self.shuffle = count, seed, shuffle
        self.rank, self.num_replicas = rank, ranks
        self.epoch, self.position = 0, 0
        self._last_set, self._ahead, self._resumed = 0, 0, False

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next iteration."""
        self._last_set = epoch
        if not self._resumed:
            self.epoch, self.position = epoch - self._ahead, 0

    def resume(self, epoch: int, position: int) -> None:
        """Start the next iteration in the middle of an epoch, whatever epoch is set before it.

        Lightning sets the epoch again after a resume; resumed at the end of an epoch, with max_steps, it skips one
        number. From then on its number is reduced by what it is ahead.
        """
        self.epoch, self.position, self._last_set, self._resumed = epoch, position, epoch, True

    def order(self) -> np.ndarray[Any, np.dtype[np.uint32]]:
        """Return this process's indices of the current epoch, uint32."""
        indices = np.arange(self.count, dtype=np.uint32)
        if self.shuffle:
            np.random.default_rng([self.seed, self.epoch]).shuffle(indices)
        return indices[: self._kept][self.rank :: self.num_replicas]

    def __iter__(self) -> Iterator[Draw]:
        if self._resumed:
            self._ahead, self._resumed = self._last_set - self.epoch, False
        order, epoch = self.order()[self.position :], self.epoch
        # Another iteration is of the whole epoch.
        self.position = 0
        return (Draw(int(index), epoch) for index in order)

    def __len__(self) -> int:
        return len(range(self.rank, self._kept, self.num_replicas))


class EpochLoader(DataLoader[Any]):
    """A DataLoader over an EpochSampler that can be saved after any batch and resumed with the next one.

    `state_dict` counts the batches handed out, not those that workers have prepared; Lightning saves and loads it.
    Nothing is drawn before the first batch is asked for, so that an epoch set until then still counts (Lightning makes
    the iterator first and sets the epoch after).
    """

    _started: tuple[int, int] | None = None
    _waits: "Waits | None" = None

    @property
    def order(self) -> EpochSampler:
        """The sampler, by its type."""
        if not isinstance(self.sampler, EpochSampler):
            raise TypeError(f"Expected EpochLoader(…, sampler=EpochSampler(…)) but got {self.sampler!r}.")
        return self.sampler

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        self._started = (self.order.epoch, self.order.position)
        self._waits = self._waits or Waits()
        batches = super().__iter__()
        for batch in self._waits.timed(batches) if self.order.shuffle else batches:
            epoch, used = self._started
            self._started = (epoch, used + (self.batch_size or 1))
            yield batch

    def state_dict(self) -> dict[str, int]:
        """Return the epoch and how many items of it have been handed out."""
        epoch, used = self._started or (self.order.epoch, self.order.position)
        if used >= len(self) * (self.batch_size or 1):
            epoch, used = epoch + 1, 0
        return {"epoch": epoch, "position": used, "items": self.order.count, "seed": self.order.seed}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Resume after the batch at which `state` was taken; the data must be the same."""
        for key, now in (("items", self.order.count), ("seed", self.order.seed)):
            if state[key] != now:
                raise ValueError(
                    f"Expected the data that the checkpoint was trained on, {key} {state[key]}, but got {now}; "
                    "resume with the same data and seed, or start a new run from the checkpoint's weights."
                )
        self.order.resume(state["epoch"], state["position"])
        self._started = None


@dataclass
class Waits:
    """How long the first steps of a training waited for their batches; one warning if that is most of their time."""

    steps: int = 0
    waited: float = 0.0
    seconds: float = 0.0
    warned: bool = False

    def timed(self, batches: Iterable[Any]) -> Iterator[Any]:
        """Yield the batches, and count the seconds until each comes and until the next is asked for."""
        begin = time.perf_counter()
        for batch in batches:
            ready = time.perf_counter()
            yield batch
            end = time.perf_counter()
            self.add(ready - begin, end - begin)
            begin = end

    def add(self, waited: float, seconds: float) -> None:
        """Count a step of `seconds`, of which `waited` were spent waiting for its batch."""
        self.steps, self.waited, self.seconds = self.steps + 1, self.waited + waited, self.seconds + seconds
        if self.warned or self.steps > MEASURED_STEPS or self.waited < max(LONG, self.seconds / 2):
            return
        self.warned = True
        log.warning(
            "Training waits for its images: %.0f of the first %.0f seconds. datamodule.workers=N reads in N processes; "
            "segdpo pack --images pixels stores images that are read several times faster; of images far larger than "
            "the crops, cut tiles.",
            self.waited,
            self.seconds,
        )
