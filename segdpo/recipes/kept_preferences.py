"""Candidates and mined records kept in the cache: runs that share what they depend on make them once."""

import logging
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np

from segdpo.data import Candidates, MaskSource, Record
from segdpo.files import MAX_ARRAY_BYTES, encode_arrays, exists, read_arrays, read_file
from segdpo.preferences import Mined, pack_judged, unpack_judged
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
        return made_once(
            path, lambda: _read(path, record), lambda: mine(record), lambda made: pack_judged(made, record)
        )


def file_of(record_id: str) -> str:
    """Return the name of a record's file: ids may contain characters that file names may not."""
    return f"{sha256(record_id.encode('utf-8', 'surrogatepass')).hexdigest()[:32]}.npz"


def _read(path: Path, record: Record) -> Record | None:
    """Return the kept record with the image and gold of `record`; None if there is none, or it is damaged."""
    if not exists(path):
        return None
    try:
        return unpack_judged(read_file(path, MAX_ARRAY_BYTES), record)
    except (ValueError, KeyError, TypeError, IndexError) as error:
        log.warning("Kept preferences cannot be read and are made again: %s (%s)", path, error)
        return None


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
