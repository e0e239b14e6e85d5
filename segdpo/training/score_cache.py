"""Scores of a frozen reference, computed once and kept on disk by content."""

import hashlib
import io
import logging
import os
import random
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from numpy.typing import NDArray
from rich.progress import track
from torch import Tensor, nn

from segdpo.data import EpochLoader, EpochSampler, PairBatch, PreferenceDataset, RankingDataset
from segdpo.files import DataError, read_arrays, write_atomically
from segdpo.losses import PreferenceLoss
from segdpo.scores import PairScores, Score
from segdpo.training.references import Answer, FrozenCopy, beside
from segdpo.training.scoring import PreferenceBatch, score_batch

log = logging.getLogger(__name__)

# Strings of bytes are what NumPy sorts fastest; zeros at the end are lost when one is taken out, never inside arrays.
DIGEST = np.dtype("S16")
Digests = NDArray[np.bytes_]
Values = NDArray[np.float32]


class ScoreTable:
    """Rows of numbers by 128-bit digest: sorted arrays in memory, some files in a folder on disk.

    A file is there whole or not at all and is named after its content, so that several processes may write into one
    folder at once. 24 bytes a pair; a lookup is a binary search.
    """

    def __init__(self, folder: Path, width: int) -> None:
        self.folder, self.width = folder, width
        self._digests = np.empty(0, DIGEST)
        self._values: Values = np.empty((0, width), np.float32)

    def __len__(self) -> int:
        return len(self._digests)

    def find(self, digests: Digests) -> tuple[Values, NDArray[np.bool_]]:
        """Return the rows of the digests, and which of them are there; the rows of the others mean nothing."""
        if not len(self):
            return np.zeros((len(digests), self.width), np.float32), np.zeros(len(digests), bool)
        places = np.searchsorted(self._digests, digests).clip(max=len(self) - 1)
        return self._values[places], np.asarray(self._digests[places] == digests)

    def write(self, digests: Digests, values: Values) -> None:
        """Keep rows in memory and on disk."""
        if not len(digests):
            return
        self._merge([digests], [values])
        content = io.BytesIO()
        np.savez(content, digests=np.frombuffer(digests.tobytes(), np.uint8), values=values)
        name = hashlib.blake2b(content.getvalue(), digest_size=8).hexdigest()
        write_atomically(self.folder / f"k{self.width}-{name}.npz", content.getvalue())

    def read(self) -> None:
        """Take in every file of the folder; a damaged one is left out, and what was in it is computed anew."""
        parts = [part for path in sorted(self.folder.glob(f"k{self.width}-*.npz")) if (part := _read(path, self.width))]
        self._merge([digests for digests, _ in parts], [values for _, values in parts])

    def _merge(self, digests: list[Digests], values: list[Values]) -> None:
        self._digests, first = np.unique(np.concatenate([self._digests, *digests]), return_index=True)
        self._values = np.concatenate([self._values, *values])[first]


class ScoreCache:
    """A table for each of several scores, opened when first asked for; each has a folder named by its key."""

    def __init__(self, folder: Path, keys: Mapping[Score, str]) -> None:
        self._folder, self._keys = folder, keys
        self._tables: dict[tuple[Score, int], ScoreTable] = {}

    def find(self, digests: Digests, width: int) -> tuple[dict[Score, Values], NDArray[np.bool_]]:
        """Return the rows of each score, and for which digests all scores are there."""
        rows: dict[Score, Values] = {}
        found = np.ones(len(digests), bool)
        for score in self._keys:
            rows[score], there = self._table(score, width).find(digests)
            found &= there
        return rows, found

    def write(self, digests: Digests, values: Mapping[Score, Values]) -> None:
        """Keep rows of each score in memory and on disk."""
        for score in self._keys:
            self._table(score, values[score].shape[1]).write(digests, values[score])

    def read_again(self) -> None:
        """Take in what other processes have written."""
        self._tables.clear()

    def _table(self, score: Score, width: int) -> ScoreTable:
        if (score, width) not in self._tables:
            table = self._tables[score, width] = ScoreTable(self._folder / self._keys[score], width)
            table.read()
        return self._tables[score, width]


def _read(path: Path, width: int) -> tuple[Digests, Values] | None:
    try:
        content = read_arrays(path)
        digests, values = content["digests"], content["values"]
        shapes = digests.shape, values.shape
        if shapes != ((DIGEST.itemsize * len(values),), (len(values), width)):
            raise ValueError(f"digests and values of the shapes {shapes}")
        if digests.dtype != np.uint8 or values.dtype != np.float32:
            raise ValueError(f"digests and values of {digests.dtype} and {values.dtype}")
    except (ValueError, KeyError, TypeError) as error:
        log.warning("%s cannot be read (%s); its scores are computed anew.", path, error)
        return None
    return digests.view(DIGEST), values


# What a score is made of: a version of segdpo that scores differently counts on.
FORMAT = 1
# Bytes of images below which waking threads takes longer than hashing.
SMALL = 1 << 20


def digests_of(batch: PreferenceBatch) -> Digests:
    """Return a digest for each pair (or ranking): of its view of the image, its valid pixels and its masks.

    What is the same in several pairs is read once; large images are read by several threads.
    """
    images = [(batch.image[i], batch.valid[i]) for i in range(len(batch.ids))]
    masks: dict[tuple[int, ...], Tensor] = {}
    pairs = [(image, [_named(masks, image, *mask) for mask in of_pair]) for image, of_pair in _masks_of(batch)]
    each = [*images, *((mask,) for mask in masks.values())]
    hashed = map(_digest, each) if batch.image.nbytes < SMALL else _threads(os.getpid()).map(_digest, each)
    digests = list(hashed)
    of_mask = dict(zip(masks, digests[len(images) :], strict=True))
    joined = (_join([digests[image], *(of_mask[key] for key in keys)]) for image, keys in pairs)
    return np.frombuffer(b"".join(joined), DIGEST)


def _masks_of(batch: PreferenceBatch) -> Iterator[tuple[int, list[tuple[int, Tensor]]]]:
    """Yield the image of each pair or ranking, and its masks with their numbers in the record."""
    if isinstance(batch, PairBatch):
        rows = zip(batch.image_index.tolist(), batch.pair_masks.tolist(), batch.chosen, batch.rejected, strict=True)
        for image, numbers, *masks in rows:
            yield image, list(zip(numbers, masks, strict=True))
    else:
        for image, (numbers, ranking) in enumerate(zip(batch.ranking_masks.tolist(), batch.ranking, strict=True)):
            yield image, list(zip(numbers, ranking, strict=True))


def _named(masks: dict[tuple[int, ...], Tensor], image: int, number: int, mask: Tensor) -> tuple[int, ...]:
    """Take note of a mask under the name that it has; masks that differ never share one, whatever their numbers say."""
    key: tuple[int, ...] = (image, number)
    # Comparing is ten times as fast as hashing.
    if not torch.equal(masks.setdefault(key, mask), mask):
        key = (image, number, len(masks))
        masks[key] = mask
    return key


def width_of(batch: PreferenceBatch) -> int:
    """Return how many numbers a pair's (or a ranking's) row holds: one a mask."""
    return 2 if isinstance(batch, PairBatch) else batch.ranking.shape[1]


def score_key(network: nn.Module, fingerprint: str, score: Score, precision: str) -> str:
    """Return a name for a folder: readable, and another one whenever anything that changes the scores is another."""
    parts = [score.quantity, region_name(score), score.reduction, precision]
    whole = repr((FORMAT, fingerprint, *parts, list(_structure(network))))
    readable = re.sub(r"[^\w.=+-]+", "_", "-".join(parts))
    return f"{readable}-{hashlib.blake2b(whole.encode(), digest_size=16).hexdigest()}"


def region_name(score: Score) -> str:
    """Return a name for the score's region that means the same in the next run too."""
    region = score.region
    if isinstance(region, str):
        return region
    name = repr(region) if not isinstance(region, partial) and " at 0x" not in repr(region) else _function_name(region)
    if "<" in name:
        raise ValueError(
            f"Expected a score whose region can be told from its name but got {region!r}; use reference=frozen, or "
            "write the region as a function of a module or as a frozen dataclass."
        )
    return name


def _function_name(function: Callable[..., Any]) -> str:
    if isinstance(function, partial):
        return f"{_function_name(function.func)}({function.args!r}, {sorted(function.keywords.items())!r})"
    return f"{getattr(function, '__module__', '')}.{getattr(function, '__qualname__', '<unnamed>')}"


def _structure(network: nn.Module) -> Iterable[tuple[str, str, list[tuple[str, str]]]]:
    """Yield what a network computes beside its weights: kinds of modules, strides, paddings, activations."""
    for name, module in network.named_modules():
        settings = [
            (key, _function_name(value) if callable(value) else repr(value))
            for key, value in sorted(vars(module).items())
            if not key.startswith("_")
            and key != "training"
            and (callable(value) or isinstance(value, str | int | float | tuple | None))
        ]
        yield name, f"{type(module).__module__}.{type(module).__qualname__}", settings


def _digest(tensors: Iterable[Tensor]) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    for tensor in tensors:
        tensor = tensor.detach().cpu().contiguous()
        digest.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.digest()


def _join(digests: Iterable[bytes]) -> bytes:
    return hashlib.blake2b(b"".join(digests), digest_size=16).digest()


@cache
def _threads(process: int) -> ThreadPoolExecutor:
    # Hashing lets go of the interpreter's lock, so threads are enough. A forked process has none of its parent's.
    return ThreadPoolExecutor(min(8, os.cpu_count() or 1), thread_name_prefix="digests")


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


class CachedScores(FrozenCopy):
    """A frozen copy whose scores are kept on disk, found by content.

    A score is found by a digest of the very pixels that it was taken from: the view of the image, its valid pixels and
    the masks. Its folder is named after the weights, the score and the precision. So whatever changes a score makes a
    miss and never a wrong number. A batch with a miss is scored by the network; misses are counted in `misses` and told
    once.

    The cache is filled when training starts: images of validation and test, and those of training in each of the data
    module's `views`. It goes on where an earlier process was killed. The network then waits on the CPU.

    Args:
        network: the reference.
        folder: where the scores of all runs are kept.
        batch_size: of filling; None: as in training. Filling keeps no activations, so it may be larger.
    """

    def __init__(self, network: nn.Module, folder: str | Path, *, batch_size: int | None = None) -> None:
        super().__init__(network)
        self.misses = 0
        self._folder, self._batch_size = Path(folder), batch_size
        self._cache: ScoreCache | None = None
        self._seen: tuple[list[str], Digests] | None = None

    def check(self, loss: PreferenceLoss) -> None:
        """Refuse a loss that needs the reference's logits, and a score that cannot be named."""
        if loss.needs_reference_logits:
            raise ValueError(
                "Expected a loss that needs the reference's scores alone but this one needs kl_to_reference "
                "(hold_anchor), which takes its logits, and a cache keeps none; use reference=frozen."
            )
        for score in loss.scores:
            score_key(self.network, self.fingerprint, score, "")

    def prepare(self, task: LightningModule, policy: nn.Module, scores: Sequence[Score]) -> None:
        """Fill the cache with what is not in it yet."""
        trainer = task.trainer
        precision = f"{trainer.precision}-{torch.get_float32_matmul_precision()}"
        keys = {score: score_key(self.network, self.fingerprint, score, precision) for score in scores}
        cache = ScoreCache(self._folder, keys)

        @torch.no_grad()
        def score(batch: PreferenceBatch) -> Mapping[Score, Values]:
            batch = trainer.strategy.batch_to_device(batch)
            # The chosen scores at once: asked for afterwards, each would pass over all logits again.
            found = score_batch(scores, beside(self.network, policy)(batch.image), batch, wants_chosen=scores)
            return {score: rows_of(pairs) for score, pairs in found.items()}

        loaders = filling_loaders(trainer, self._batch_size)
        with kept_random_state(), trainer.precision_plugin.forward_context():
            convert = trainer.precision_plugin.convert_input
            scored = fill(cache, loaders, score, convert=convert, quiet=not trainer.is_global_zero)
        trainer.strategy.barrier("reference scores")
        cache.read_again()
        log.info("Reference scores: %d pairs computed, kept in %s.", scored, self._folder)
        self.network.cpu()
        self._cache = cache

    def see(self, batch: PreferenceBatch) -> None:
        """Take the digests while the pixels are on the CPU."""
        if self._cache is not None:
            self._seen = (batch.ids, digests_of(batch))

    def __call__(self, batch: PreferenceBatch, policy: nn.Module) -> Answer:
        """Return the cached scores; the logits if there is a pair without, or no cache outside of training."""
        if self._cache is None:
            return super().__call__(batch, policy)
        # A batch keeps its list of ids on the way to the device.
        seen = self._seen is not None and self._seen[0] is batch.ids
        digests = self._seen[1] if self._seen is not None and seen else digests_of(batch)
        rows, found = self._cache.find(digests, width_of(batch))
        if not found.all():
            self._miss(batch, int((~found).sum()), len(found))
            return super().__call__(batch, policy)
        return {score: scores_of(torch.from_numpy(values).to(batch.image.device)) for score, values in rows.items()}

    def _miss(self, batch: PreferenceBatch, missing: int, pairs: int) -> None:
        if not self.misses:
            rank_zero_warn(
                f"Expected cached reference scores but {missing} of {pairs} pairs of a batch have none (images "
                f"{', '.join(batch.ids[:3])}…, view {int(batch.view[0])}): the network scores such batches now, which "
                "is right and costs a forward; said only once. If images are augmented, set datamodule.views=4 (any "
                "number), so that views come again; if they differ in size, crop or resize them to one size, since "
                "what a batch pads is another image."
            )
        self.misses += missing


def rows_of(scores: PairScores) -> Values:
    """Return a row of float32 a pair, or ranking: s⁺, then the scores of all masks but the last relative to it."""
    rows = torch.cat([scores.chosen[:, None], scores.ranked[:, :-1] - scores.ranked[:, -1:]], dim=1)
    return np.asarray(rows.float().cpu().numpy())


def scores_of(rows: Tensor) -> PairScores:
    """Return the scores that `rows_of` made the rows of."""
    ranked = torch.cat([rows[:, 1:], torch.zeros_like(rows[:, :1])], dim=1)
    return PairScores(chosen=rows[:, 0], margin=rows[:, 1], ranked=ranked)
