"""Reference scores on disk and in memory, found by the content that they belong to."""

import hashlib
import io
import logging
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from segdpo.models.atomic_file import write_atomically
from segdpo.scores import Score

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
        with np.load(path, allow_pickle=False) as content:
            digests, values = content["digests"].view(DIGEST), content["values"]
        if values.shape != (len(digests), width) or values.dtype != np.float32:
            raise ValueError(f"{len(digests)} digests for values of shape {values.shape}")
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        log.warning("%s cannot be read (%s); its scores are computed anew.", path, error)
        return None
    return digests, values
