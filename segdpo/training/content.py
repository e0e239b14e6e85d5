"""Digests of content: which scores belong to a batch's pairs, and which network and score they come from."""

import hashlib
import os
import re
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from segdpo.data.batch import PairBatch
from segdpo.scores import Score
from segdpo.training.score_table import DIGEST, Digests
from segdpo.training.scoring import PreferenceBatch

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
