"""The LightningDataModule: a source, its splits, and loaders for training, validation and test."""

import logging
from collections.abc import Callable, Sequence

import numpy as np
import torch
from lightning.pytorch import LightningDataModule

from segdpo.data.datasets import PreferenceDataset, RankingDataset, SupervisedDataset
from segdpo.data.gold import with_gold
from segdpo.data.record import RecordInfo, RecordSource
from segdpo.data.sampling import EpochLoader, EpochSampler
from segdpo.data.splits import Numbers, Splits, infos_of, split_by_fraction
from segdpo.data.transforms import Pipeline, init_worker

log = logging.getLogger(__name__)

# Of a batch in evaluation, which shows whole images, unless it is of one image: in float32 they take 12 bytes each.
PIXELS = 2**24

AnyDataset = PreferenceDataset | RankingDataset | SupervisedDataset


class DataModule(LightningDataModule):
    """Loaders over one source.

    Args:
        source: the records.
        train_pipeline: makes views of training images.
        eval_pipeline: makes views of validation and test images, always view 0.
        items: makes a data set from (source, pipeline, indices, views=, seed=): PreferenceDataset, RankingDataset,
            SupervisedDataset, or a partial of one; it decides what a batch is.
        eval_items: the same for validation and test; left out: `items`.
        split: Splits, or a function that makes them from what is known of each record (see `infos_of`).
        batch_size: images a batch (of each process).
        workers: processes that prepare batches; 0: in this one. Batches do not depend on it.
        views: how many views a training image has; None: a new one each epoch.
        pin_memory: page-lock batches for the copy to a GPU; left out: if there is a GPU.
        seed: of order and views. The splits have a seed of their own, so that runs over seeds share them.
    """

    def __init__(
        self,
        source: RecordSource,
        train_pipeline: Pipeline,
        eval_pipeline: Pipeline,
        *,
        items: Callable[..., AnyDataset] = PreferenceDataset,
        eval_items: Callable[..., AnyDataset] | None = None,
        split: Splits | Callable[[Sequence[RecordInfo]], Splits] = split_by_fraction,
        batch_size: int = 8,
        workers: int = 0,
        views: int | None = None,
        pin_memory: bool | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.source, self.train_pipeline, self.eval_pipeline = source, train_pipeline, eval_pipeline
        self.items, self.eval_items = items, eval_items or items
        self.batch_size, self.workers, self.views, self.seed = batch_size, workers, views, seed
        self.pin_memory = torch.cuda.is_available() if pin_memory is None else pin_memory
        self.splits = split if isinstance(split, Splits) else split(infos_of(source))
        log.info("%s", self.splits)

    def train_data(self) -> AnyDataset:
        """Return the training images as items, each epoch in new views."""
        return self.items(self.source, self.train_pipeline, self.splits.train, views=self.views, seed=self.seed)

    def eval_data(self, indices: Numbers) -> AnyDataset:
        """Return some images as items for evaluation, always in the same view."""
        return self.eval_items(self.source, self.eval_pipeline, indices, views=1, seed=self.seed)

    def train_dataloader(self) -> EpochLoader:
        """Shuffled by (seed, epoch); the last batch is left out if it is not full, unless it is the only one."""
        data = self.train_data()
        data.check_classes()
        return self._loader(data, shuffle=True)

    def val_dataloader(self) -> EpochLoader | list[EpochLoader]:
        """In order: what `eval_items` makes items of; then, as a second loader, other images with their gold alone.

        So an image with gold and no pairs still counts for val/iou. No loader where there is nothing to load.
        """
        return self._eval_loaders(self.splits.val)

    def test_dataloader(self) -> EpochLoader | list[EpochLoader]:
        """As `val_dataloader`, of the test split."""
        return self._eval_loaders(self.splits.test)

    def _eval_loaders(self, indices: Numbers) -> EpochLoader | list[EpochLoader]:
        loaders = [self._loader(data, shuffle=False) for data in self._eval_parts(indices)]
        return loaders[0] if len(loaders) == 1 else loaders

    def _eval_parts(self, indices: Numbers) -> list[AnyDataset]:
        none = self.eval_data(indices[:0])
        if none.unjudged == "error":
            return [self.eval_data(indices)] if len(indices) else []
        kept = np.array([none.usable(int(number)) for number in indices], bool)
        parts = [self.eval_data(indices[kept])] if kept.any() else []
        rest = with_gold(self.source, indices[~kept])
        if len(rest):
            log.info("%d of %d held-out images have no preference, but gold.", len(rest), len(indices))
            parts.append(SupervisedDataset(self.source, self.eval_pipeline, rest, views=1, seed=self.seed))
        return parts

    def eval_batch_size(self, data: AnyDataset) -> int:
        """Return how many views make a batch of evaluation: fewer than `batch_size` where the first is a large one."""
        return max(1, min(self.batch_size, PIXELS // data[0].valid.size))

    def _loader(self, data: AnyDataset, *, shuffle: bool) -> EpochLoader:
        rank, ranks = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        sampler = EpochSampler(len(data), seed=self.seed, shuffle=shuffle, rank=rank, ranks=ranks)
        size = self.batch_size if shuffle else self.eval_batch_size(data)
        return EpochLoader(
            data,
            batch_size=size,
            sampler=sampler,
            collate_fn=data.collate,
            drop_last=shuffle and len(sampler) >= size,
            num_workers=self.workers,
            persistent_workers=self.workers > 0,
            pin_memory=self.pin_memory,
            worker_init_fn=init_worker,
            # A generator of its own: a loader that draws its workers' seed from the global one would give dropout
            # other numbers after a resume, which makes a new loader, than without.
            generator=torch.Generator(),
        )
