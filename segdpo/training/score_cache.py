"""A frozen reference whose scores are computed once and kept on disk, found by their content."""

import hashlib
import logging
import os
import secrets
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from numpy.typing import NDArray
from torch import Tensor, nn

from segdpo.data import RankingBatch
from segdpo.files import MAX_FILE_BYTES, DataError, open_file
from segdpo.losses import PreferenceLoss
from segdpo.scores import PairScores, Score
from segdpo.training.references import Answer, FrozenCopy, beside, moved
from segdpo.training.scoring import PreferenceBatch, at_image_size, logits_of, score_batch

log = logging.getLogger(__name__)

Digests = NDArray[np.bytes_]
Rows = NDArray[np.float32]

# Part of every key: a version of segdpo that scores or stores differently counts up, and does not find older files.
FORMAT = 2
# 128 bits; NumPy sorts strings of bytes fastest.
DIGEST = np.dtype("S16")
CHECKSUM_BYTES = 8
# Bytes of images below which waking threads takes longer than hashing.
SMALL = 1 << 20


class CachedScores(FrozenCopy):
    """A frozen copy whose scores are kept on disk: a step whose pairs were scored before costs no forward of it.

    A score is found by a digest of what it was computed from (the view of the image, its valid pixels and the masks),
    in a folder named after the network, the scores and the precision. So whatever changes a score makes it missing,
    never wrong. A batch with missing scores is scored by the network, and the scores are added; an interrupted run
    keeps what it added. While all scores are found, the network waits on the CPU.

    Args:
        network: the reference.
        folder: where the scores of all runs are kept.
    """

    def __init__(self, network: nn.Module, folder: str | Path) -> None:
        super().__init__(network)
        self.computed = 0
        """How many pairs (or rankings) the network has scored."""
        self._folder = Path(folder)
        self._scores: tuple[Score, ...] = ()
        self._key = ""
        self._tables: dict[int, ScoreTable] = {}
        self._precision = ""
        self._task: LightningModule | None = None
        self._seen: tuple[list[str], Digests] | None = None
        self._has_warned = False

    def check(self, loss: PreferenceLoss) -> None:
        """Refuse a loss that needs the reference's logits, and a score whose region has no name."""
        if loss.needs_reference_logits:
            raise ValueError(
                "Expected a loss that reads only scores of the reference but this one reads kl_to_reference "
                "(hold_anchor), which needs its logits; use reference=frozen."
            )
        for score in loss.scores:
            name_of(score)

    def prepare(self, task: LightningModule, policy: nn.Module, scores: Sequence[Score]) -> None:
        """Choose the folder of these scores."""
        self._task, self._precision = task, _precision_of(task.trainer)
        self._scores, self._tables = tuple(sorted(scores, key=name_of)), {}
        window = getattr(task, "window", None)
        precision = self._precision if window is None else f"{self._precision} in windows of {window}"
        self._key = cache_key(self.network, self.fingerprint, self._scores, precision)

    def see(self, batch: PreferenceBatch) -> None:
        """Compute the digests while the pixels are on the CPU."""
        if self._trainer() is not None:
            self._seen = (batch.ids, _hash_batch(batch))

    @torch.no_grad()
    def __call__(self, batch: PreferenceBatch, policy: nn.Module) -> Answer:
        """Return the scores of the batch's pairs; logits if training has not prepared the cache for this Trainer."""
        trainer = self._trainer()
        if trainer is None:
            return super().__call__(batch, policy)
        # A batch keeps its list of ids on the way to the device.
        seen = self._seen is not None and self._seen[0] is batch.ids
        digests = self._seen[1] if self._seen is not None and seen else _hash_batch(batch)
        masks = batch.ranking.shape[1] if isinstance(batch, RankingBatch) else 2
        table = self._table(masks * len(self._scores))
        rows, found = table.find(digests)
        if found.all():
            self._wait_on_cpu()
        else:
            self._warn_if_unexpected(trainer, batch, found)
            rows[~found] = self._compute(batch, policy, ~found)[~found]
            table.add(digests[~found], rows[~found])
            self.computed += int((~found).sum())
        parts = _sent(rows, batch.image.device).split(masks, dim=1)
        return {score: scores_of(part) for score, part in zip(self._scores, parts, strict=True)}

    def _compute(self, batch: PreferenceBatch, policy: nn.Module, missing: NDArray[np.bool_]) -> Rows:
        """Return the rows of the batch; only those that are missing mean anything."""
        pairs = torch.from_numpy(missing).to(batch.image.device)
        images = pairs.nonzero()[:, 0] if isinstance(batch, RankingBatch) else batch.image_index[pairs].unique()
        some = at_image_size(logits_of(beside(self.network, policy), batch.image[images], False, self.window))
        logits = some.new_zeros(len(batch.image), *some.shape[1:]).index_copy_(0, images, some)
        # All s⁺ at once: each one computed later would pass over the logits again.
        scored = score_batch(self._scores, logits, batch, wants_chosen=self._scores)
        rows: Rows = torch.cat([rows_of(scored[score]) for score in self._scores], dim=1).cpu().numpy()
        return rows

    def _table(self, width: int) -> "ScoreTable":
        if width not in self._tables:
            self._tables[width] = ScoreTable(self._folder / self._key, width)
        return self._tables[width]

    def _trainer(self) -> Trainer | None:
        """Return the task's Trainer if the cache was prepared for its precision; a copy of a task has no Trainer."""
        try:
            trainer = None if self._task is None else self._task.trainer
        except RuntimeError:
            return None
        return None if trainer is None or _precision_of(trainer) != self._precision else trainer

    def _wait_on_cpu(self) -> None:
        own = next(self.network.parameters(), None)
        if own is not None and own.device.type != "cpu":
            moved(self.network, device="cpu")

    def _warn_if_unexpected(self, trainer: Trainer, batch: PreferenceBatch, found: NDArray[np.bool_]) -> None:
        """Warn once if a whole batch is missing in an epoch whose views should all have been seen."""
        views = getattr(getattr(trainer, "datamodule", None), "views", None) or 1
        if self._has_warned or found.any() or not trainer.training or trainer.current_epoch < views:
            return
        self._has_warned = True
        rank_zero_warn(
            f"Expected cached reference scores in epoch {trainer.current_epoch} but a whole batch has none "
            f"(images {', '.join(batch.ids[:3])}…, view {int(batch.view[0])}); the network scores it now, as "
            "reference=frozen would. If images are augmented, set datamodule.views=4 (any number), so that views "
            "repeat; if they differ in size, crop or resize them to one size, because padding changes the image."
        )


class ScoreTable:
    """Rows of numbers by digest, in sorted arrays in memory and in files on disk.

    Each process appends to a file of its own, a row at a time: digest, numbers, checksum. Rows that are cut off or
    damaged are ignored. What other processes add is read when something is missing.

    Args:
        folder: of the files.
        width: numbers in a row.
    """

    def __init__(self, folder: Path, width: int) -> None:
        self.folder, self.width = folder, width
        self._row = np.dtype([("digest", DIGEST), ("values", "<f4", (width,))])
        self._path = folder / f"{width}-{secrets.token_hex(8)}.scores"
        self._read_to: dict[Path, int] = {}
        self._digests = np.empty(0, DIGEST)
        self._values: Rows = np.empty((0, width), np.float32)
        self._recent: dict[bytes, Rows] = {}

    def find(self, digests: Digests) -> tuple[Rows, NDArray[np.bool_]]:
        """Return a row for each digest, and which of them were found; other rows are 0."""
        rows, found = self._look_up(digests)
        if not found.all() and self._read_files():
            rows, found = self._look_up(digests)
        return rows, found

    def add(self, digests: Digests, values: Rows) -> None:
        """Add rows in memory and on disk."""
        records = np.empty(len(digests), self._row)
        records["digest"], records["values"] = digests, values
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with self._path.open("ab") as file:
                file.write(b"".join(row + _checksum(row) for row in map(np.void.tobytes, records)))
        except OSError as error:
            raise OSError(
                error.errno,
                f"Expected to add reference scores to {self._path} but {error.strerror}; free some space there, or use "
                "reference=frozen.",
            ) from error
        self._recent |= dict(zip(digests.tolist(), values, strict=True))
        # Merging sorts everything, so it is done rarely; a dict alone would take six times the memory.
        if len(self._recent) > 1000 + len(self._digests) // 4:
            self._merge(np.array(list(self._recent), DIGEST), np.stack(list(self._recent.values())))
            self._recent.clear()

    def _look_up(self, digests: Digests) -> tuple[Rows, NDArray[np.bool_]]:
        rows, found = np.zeros((len(digests), self.width), np.float32), np.zeros(len(digests), bool)
        if len(self._digests):
            places = np.searchsorted(self._digests, digests).clip(max=len(self._digests) - 1)
            found = np.asarray(self._digests[places] == digests)
            rows[found] = self._values[places[found]]
        for number, digest in enumerate(digests.tolist() if self._recent else ()):
            if digest in self._recent:
                rows[number], found[number] = self._recent[digest], True
        return rows, found

    def _read_files(self) -> bool:
        """Read what other processes have added since the last call; return whether that was anything."""
        added = [rows for path in sorted(self.folder.glob(f"{self.width}-*.scores")) if len(rows := self._read(path))]
        if added:
            self._merge(*(np.concatenate([rows[name] for rows in added]) for name in ("digest", "values")))
        return bool(added)

    def _read(self, path: Path) -> NDArray[np.void]:
        """Return the undamaged rows of a file that have not been read yet."""
        size, begin = self._row.itemsize + CHECKSUM_BYTES, self._read_to.get(path, 0)
        content = b""
        try:
            new = path.stat().st_size - begin
            if path != self._path and new >= size:
                with open_file(path) as file:
                    file.seek(begin)
                    content = file.read(min(new, MAX_FILE_BYTES))
        except (OSError, DataError, MemoryError) as error:
            log.warning("%s cannot be read (%s); its scores are computed again.", path, error)
            self._read_to[path] = sys.maxsize  # not tried again
            return np.empty(0, self._row)
        # An incomplete row at the end may still be completed.
        rows = [content[first : first + size] for first in range(0, len(content) - size + 1, size)]
        good = [row[:-CHECKSUM_BYTES] for row in rows if row[-CHECKSUM_BYTES:] == _checksum(row[:-CHECKSUM_BYTES])]
        if len(good) < len(rows):
            log.warning("%s: %d of %d rows are damaged and are computed again.", path, len(rows) - len(good), len(rows))
        self._read_to[path] = begin + len(rows) * size
        return np.frombuffer(b"".join(good), self._row)

    def _merge(self, digests: Digests, values: Rows) -> None:
        self._digests, first = np.unique(np.concatenate([self._digests, digests]), return_index=True)
        self._values = np.concatenate([self._values, values])[first]


def digests_of(batch: PreferenceBatch, each: Callable[..., Iterable[bytes]] = map) -> Digests:
    """Return a digest for each pair (or ranking): of its view of the image, its valid pixels and its masks.

    Args:
        batch: pairs or rankings.
        each: applies a function to every element, as `map` does; another one may use threads.
    """
    images = list(each(_digest, zip(batch.image, batch.valid, strict=True)))
    if isinstance(batch, RankingBatch):
        masks, length = list(each(_digest, zip(batch.ranking.flatten(0, 1)))), batch.ranking.shape[1]
        parts = [[image, *masks[k * length : (k + 1) * length]] for k, image in enumerate(images)]
    else:
        if batch.shared is not None:
            masks, pairs = list(each(_digest, zip(batch.shared.masks))), batch.shared.pairs.tolist()
        else:
            masks, count = list(each(_digest, zip(chain(batch.chosen, batch.rejected)))), len(batch.chosen)
            pairs = [(pair, count + pair) for pair in range(count)]
        index = batch.image_index.tolist()
        parts = [[images[i], masks[a], masks[b]] for i, (a, b) in zip(index, pairs, strict=True)]
    return np.frombuffer(b"".join(_hash(b"".join(part), DIGEST.itemsize) for part in parts), DIGEST)


def _hash_batch(batch: PreferenceBatch) -> Digests:
    return digests_of(batch, map if batch.image.nbytes < SMALL else _threads(os.getpid()).map)


@cache
def _threads(process: int) -> ThreadPoolExecutor:
    # Hashing releases the interpreter's lock. One pool a process, since a forked process has none of the threads.
    return ThreadPoolExecutor(min(8, os.cpu_count() or 1), thread_name_prefix="digests")


def _digest(tensors: Iterable[Tensor]) -> bytes:
    digest = hashlib.blake2b(digest_size=DIGEST.itemsize)
    for tensor in tensors:
        tensor = tensor.detach().cpu().contiguous()
        digest.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.digest()


def _checksum(row: bytes) -> bytes:
    return _hash(row, CHECKSUM_BYTES)


def _hash(content: bytes, size: int) -> bytes:
    return hashlib.blake2b(content, digest_size=size).digest()


def _sent(rows: Rows, device: torch.device) -> Tensor:
    """Return the rows on a device; pinned, since a copy from other memory waits until a GPU has finished its work."""
    host = torch.from_numpy(rows)
    return host.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else host.to(device)


def _precision_of(trainer: Trainer) -> str:
    return f"{trainer.precision}-{torch.get_float32_matmul_precision()}"


def cache_key(network: nn.Module, fingerprint: str, scores: Iterable[Score], precision: str) -> str:
    """Return the name of a folder that differs whenever anything differs that changes the scores.

    Args:
        network: the reference.
        fingerprint: of its weights.
        scores: what is kept, in this order.
        precision: of the computation.
    """
    whole = (FORMAT, fingerprint, precision, [name_of(score) for score in scores], list(_structure(network)))
    return _hash(repr(whole).encode(), 16).hex()


def name_of(score: Score) -> str:
    """Return a name for a score that is the same in the next run; refuse regions that have none (lambdas)."""
    region = score.region
    if not isinstance(region, str):
        named = not isinstance(region, partial) and " at 0x" not in repr(region)
        region = repr(region) if named else _function_name(region)
    if "<" in region:
        raise ValueError(
            f"Expected a score whose region has a name but got {score.region!r}; use reference=frozen, or write the "
            "region as a function of a module or as a frozen dataclass."
        )
    return f"{score.quantity} {region} {score.reduction}"


def _function_name(function: Callable[..., Any]) -> str:
    if isinstance(function, partial):
        return f"{_function_name(function.func)}({function.args!r}, {sorted(function.keywords.items())!r})"
    return f"{getattr(function, '__module__', '')}.{getattr(function, '__qualname__', '<unnamed>')}"


def _structure(network: nn.Module) -> Iterator[tuple[str, str, list[tuple[str, str]]]]:
    """Yield what a network computes apart from its weights: classes of modules, strides, paddings, activations."""
    for name, module in network.named_modules():
        settings = [
            (key, _function_name(value) if callable(value) else repr(value))
            for key, value in sorted(vars(module).items())
            if not key.startswith("_")
            and key != "training"
            and (callable(value) or isinstance(value, str | int | float | tuple | None))
        ]
        yield name, f"{type(module).__module__}.{type(module).__qualname__}", settings


def rows_of(scores: PairScores) -> Tensor:
    """Return a row per pair (or ranking): s⁺, then the scores of all masks but the last relative to the last."""
    return torch.cat([scores.chosen[:, None], scores.ranked[:, :-1] - scores.ranked[:, -1:]], dim=1).float()


def scores_of(rows: Tensor) -> PairScores:
    """Return the scores that `rows_of` made the rows of."""
    ranked = torch.cat([rows[:, 1:], torch.zeros_like(rows[:, :1])], dim=1)
    return PairScores(chosen=rows[:, 0], margin=rows[:, 1], ranked=ranked)
