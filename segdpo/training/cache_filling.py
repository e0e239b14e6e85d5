"""Filling a cache of reference scores: every image in every view, once, without a trace in the random numbers."""

import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Trainer
from rich.progress import track

from segdpo.data.errors import DataError
from segdpo.data.pair_dataset import PreferenceDataset, RankingDataset
from segdpo.data.sampling import EpochLoader, EpochSampler
from segdpo.scores import Score
from segdpo.training.content import digests_of, width_of
from segdpo.training.score_table import Digests, ScoreCache, Values
from segdpo.training.scoring import PreferenceBatch

# What a kill may lose.
WRITE_EVERY_SECONDS = 10.0


def fill(
    cache: ScoreCache,
    loaders: Sequence[EpochLoader],
    score: Callable[[PreferenceBatch], Mapping[Score, Values]],
    *,
    convert: Callable[[PreferenceBatch], PreferenceBatch],
    quiet: bool = False,
) -> int:
    """Score every batch that is not in the cache yet; return how many pairs that were.

    Written every so often and when stopped, so that the same call goes on after a kill; then batches that are there
    already cost their loading and their digest.
    """
    scored, begin = 0, time.monotonic()
    waiting: list[tuple[Digests, Mapping[Score, Values]]] = []
    try:
        for batch in track(_views(loaders), "reference scores", _count(loaders), disable=quiet, transient=True):
            if batch is None:
                continue
            batch = convert(batch)
            digests = digests_of(batch)
            if cache.find(digests, width_of(batch))[1].all():
                continue
            waiting.append((digests, score(batch)))
            scored += len(digests)
            if time.monotonic() - begin >= WRITE_EVERY_SECONDS:
                _write(cache, waiting)
                begin = time.monotonic()
    finally:
        _write(cache, waiting)
    return scored


def filling_loaders(trainer: Trainer, batch_size: int | None) -> list[EpochLoader]:
    """Return loaders over what training, validation and test will see: in order, all of it, shared by processes."""
    data: Any = getattr(trainer, "datamodule", None)
    given = [] if data is None else [data.train_dataloader(), data.val_dataloader(), data.test_dataloader()]
    loaders = [one for some in given for one in (some if isinstance(some, list) else [some])]
    if not loaders or not all(isinstance(loader, EpochLoader) for loader in loaders):
        raise ValueError(
            "Expected the loaders of a segdpo DataModule to fill the cache of reference scores from but got "
            f"{', '.join(type(loader).__name__ for loader in loaders) or 'no data module'}; "
            "call trainer.fit(task, datamodule=DataModule(…)), or use reference=frozen."
        )
    return [
        EpochLoader(
            loader.dataset,
            batch_size=batch_size or loader.batch_size,
            sampler=EpochSampler(loader.order.count, shuffle=False, rank=trainer.global_rank, ranks=trainer.world_size),
            collate_fn=partial(_collate, collate=loader.collate_fn),
            num_workers=loader.num_workers,
            worker_init_fn=loader.worker_init_fn,
            generator=torch.Generator(),
        )
        for loader in loaders
        if isinstance(loader.dataset, PreferenceDataset | RankingDataset)
    ]


@contextmanager
def kept_random_state() -> Iterator[None]:
    """Give all global generators the states after the `with` that they had before it."""
    python, numbers = random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        with torch.random.fork_rng():
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numbers)  # noqa: NPY002


def _collate(items: Any, *, collate: Callable[[Any], PreferenceBatch]) -> PreferenceBatch | None:
    # A batch of these images may lack what a batch of training has.
    try:
        return collate(items)
    except DataError:
        return None


def _views(loaders: Sequence[EpochLoader]) -> Iterator[PreferenceBatch | None]:
    for loader in loaders:
        for view in range(_views_of(loader)):
            loader.order.set_epoch(view)
            yield from loader


def _views_of(loader: EpochLoader) -> int:
    # Without a number of views each epoch has new ones; the first of them is the only one if nothing is drawn.
    return getattr(loader.dataset, "views", None) or 1


def _count(loaders: Sequence[EpochLoader]) -> int:
    return sum(len(loader) * _views_of(loader) for loader in loaders)


def _write(cache: ScoreCache, waiting: list[tuple[Digests, Mapping[Score, Values]]]) -> None:
    """Write what waits, by the number of masks that its rankings have."""
    for width in {next(iter(values.values())).shape[1] for _, values in waiting}:
        some = [(d, values) for d, values in waiting if next(iter(values.values())).shape[1] == width]
        digests = np.concatenate([d for d, _ in some])
        cache.write(digests, {score: np.concatenate([values[score] for _, values in some]) for score in some[0][1]})
    waiting.clear()
