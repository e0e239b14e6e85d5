"""Candidates that took a network to make, kept on disk, so that the next loss of a sweep need not ask it again."""

import io
import logging
import zipfile
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np
from omegaconf import DictConfig

from segdpo.models.atomic_file import write_atomically
from segdpo.pairs.candidates_value import Candidates, MaskSource
from segdpo.pairs.record import Record
from segdpo.story.configs import Plain, key_for, leaves, stamp_of_files

log = logging.getLogger(__name__)

# Code that changes only with a version. A user's own functions change without their names changing.
VERSIONED = ("segdpo", "segmentation_models_pytorch", "torch", "torchvision", "albumentations")


@dataclass(frozen=True, eq=False)
class KeptCandidates:
    """The masks of `mask_source`, made once for each record and then read from `folder`, one file a record.

    Whoever names the folder answers for its being of this source, its network's weights and its seed. Jobs may share
    it: what two of them write at the same time is the same.
    """

    mask_source: MaskSource
    folder: Path

    def __call__(self, record: Record, rng: np.random.Generator) -> Candidates:
        """Return the kept masks of the record, or make and keep them. Kept masks draw nothing from `rng`."""
        # Ids may hold what no file name may.
        path = self.folder / f"{sha256(record.id.encode('utf-8', 'surrogatepass')).hexdigest()[:32]}.npz"
        found = _read(path)
        if found is None:
            found = self.mask_source(record, rng)
            write_atomically(path, _packed(found))
        return found


def candidates_key(config: DictConfig, node: Plain) -> str | None:
    """Name all that the masks of this source depend on; None where that cannot be told.

    `node`: the source of masks, with the network that it asks in its place.
    """
    targets = [str(value) for name, value in leaves(node) if name.split(".")[-1] == "_target_"]
    if not all(target.split(".")[0] in VERSIONED for target in targets):
        return None
    return key_for(config, ("seed",), source=node, source_files=stamp_of_files(node))


def _read(path: Path) -> Candidates | None:
    try:
        with np.load(path, allow_pickle=False) as kept:
            return Candidates(kept["masks"], tuple(kept["names"].tolist()))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        log.warning("Kept candidates cannot be read and are made anew: %s (%s)", path, error)
        return None


def _packed(candidates: Candidates) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, masks=candidates.masks, names=np.asarray(candidates.names, dtype=np.str_))
    return buffer.getvalue()
