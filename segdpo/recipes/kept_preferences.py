"""Candidates and mined records kept in the cache: runs that share what they depend on make them once."""

import json
import logging
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from segdpo.data import Candidates, MaskSource, Pair, Record
from segdpo.files import encode_arrays, exists, read_arrays
from segdpo.preferences import Mined
from segdpo.recipes.cache import made_once

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class KeptCandidates:
    """A source of candidates that keeps its masks in a folder, one file a record, and reads them from there.

    The caller names the folder after the source, the weights of its network and the seed, see `candidates_key` of
    collect.py. Jobs that start together make each record's masks once.
    """

    mask_source: MaskSource
    folder: Path

    def __call__(self, record: Record, rng: np.random.Generator) -> Candidates:
        """Return the kept masks of the record, or make and keep them. Kept masks draw nothing from `rng`."""
        path = self.folder / file_of(record.id)
        return made_once(
            path,
            lambda: _read_candidates(path, record),
            lambda: self.mask_source(record, rng),
            lambda made: encode_arrays(masks=made.masks, names=np.asarray(made.names, dtype=np.str_)),
        )


@dataclass(frozen=True, eq=False)
class KeptMined(Mined):
    """Mined records that are kept in `folder`, one file a record, and read from there by other runs.

    The caller names the folder after everything that the preferences depend on. Masks are kept unless they are those
    that the record came with.
    """

    folder: Path = Path()

    def _mine(self, record: Record) -> Record:
        path = self.folder / file_of(record.id)
        mine = super()._mine
        return made_once(path, lambda: _read(path, record), lambda: mine(record), lambda made: _packed(made, record))


def file_of(record_id: str) -> str:
    """Return the name of a record's file: ids may contain characters that file names may not."""
    return f"{sha256(record_id.encode('utf-8', 'surrogatepass')).hexdigest()[:32]}.npz"


def _read(path: Path, record: Record) -> Record | None:
    """Return the kept record with the image and gold of `record`; None if there is none, or it is damaged."""
    if not exists(path):
        return None
    try:
        kept = read_arrays(path)
        pairs = [Pair(int(a), int(b), float(w)) for (a, b), w in zip(kept["pairs"], kept["weights"], strict=True)]
        meta = json.loads(str(kept["meta"][0]))
        masks = kept.get("masks", record.masks)
        names = tuple(kept["names"].tolist()) if "names" in kept else record.mask_names
        if masks.shape[1:] != record.image.shape[:2] or masks.dtype != np.uint8 or len(names) != len(masks):
            raise ValueError(f"masks of {masks.dtype} {masks.shape} for an image of {record.image.shape}")
        ranking = tuple(kept["ranking"].tolist())
    except (ValueError, KeyError, TypeError, IndexError) as error:
        log.warning("Kept preferences cannot be read and are made again: %s (%s)", path, error)
        return None
    return replace(record, masks=masks, mask_names=names, pairs=tuple(pairs), ranking=ranking, meta=record.meta | meta)


def _read_candidates(path: Path, record: Record) -> Candidates | None:
    """Return the kept candidates of the record; None if there are none, or they are damaged."""
    if not exists(path):
        return None
    try:
        kept = read_arrays(path)
        masks, names = kept["masks"], kept["names"]
        if masks.shape[1:] != record.image.shape[:2] or names.dtype.kind != "U":
            raise ValueError(f"masks of shape {masks.shape} for an image of {record.image.shape}")
        return Candidates(masks, tuple(names.tolist()))
    except (ValueError, KeyError, TypeError, IndexError) as error:
        log.warning("Kept candidates cannot be read and are made again: %s (%s)", path, error)
        return None


def _packed(made: Record, record: Record) -> bytes:
    new_meta = {name: value for name, value in made.meta.items() if record.meta.get(name) != value}
    arrays: dict[str, Any] = {
        "pairs": np.array([(pair.chosen, pair.rejected) for pair in made.pairs], np.int64).reshape(-1, 2),
        "weights": np.array([pair.weight for pair in made.pairs], np.float64),
        "ranking": np.array(made.ranking, np.int64),
        "meta": np.array([json.dumps(new_meta)], np.str_),
    }
    if made.mask_names != record.mask_names or not np.array_equal(made.masks, record.masks):
        arrays |= {"masks": made.masks, "names": np.array(made.mask_names, np.str_)}
    return encode_arrays(**arrays)
