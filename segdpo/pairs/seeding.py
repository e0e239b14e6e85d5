"""Random numbers that belong to a record, so that what is drawn never depends on order, workers or interruptions."""

import hashlib

import numpy as np


def record_rng(seed: int, record_id: str, purpose: str) -> np.random.Generator:
    """Return the generator of (seed, record, purpose): the same three give the same numbers, anywhere.

    >>> bool(record_rng(0, "a", "mine").random() == record_rng(0, "a", "mine").random())
    True
    """
    # Not hash(): Python salts it anew in every process.
    digest = hashlib.sha256(f"{seed}\0{purpose}\0{record_id}".encode("utf-8", "surrogatepass")).digest()
    return np.random.default_rng(np.frombuffer(digest, dtype=np.uint32))
