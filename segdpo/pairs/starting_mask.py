"""The mask that annotators and corruptions start from, and the checks that every mask must pass."""

import numpy as np

from segdpo.pairs.record import Mask, Record


def starting_mask(record: Record, start: str = "gold") -> Mask:
    """Return the record's gold mask, or the mask named `start`; raise where there is none."""
    if start == "gold":
        if record.gold is None:
            raise ValueError(
                f"Expected a gold mask in record {record.id!r} but it has none; "
                f"start from one of its masks instead: start={record.mask_names[0] if record.mask_names else '…'!r}."
            )
        return checked_mask(record.gold, f"gold of record {record.id!r}")
    if start not in record.mask_names:
        raise ValueError(
            f"Expected start to be 'gold' or a mask of record {record.id!r} ({', '.join(record.mask_names) or 'none'}) "
            f"but got {start!r}."
        )
    return checked_mask(record.masks[record.mask_names.index(start)], f"mask {start!r} of record {record.id!r}")


def checked_mask(mask: Mask, name: str = "mask") -> Mask:
    """Return the mask if it is uint8 [H, W] with at least one pixel; raise otherwise."""
    if not isinstance(mask, np.ndarray) or mask.dtype != np.uint8:
        got = mask.dtype if isinstance(mask, np.ndarray) else type(mask).__name__
        raise TypeError(f"Expected {name} to be a uint8 array of class ids but got {got}; convert it with astype.")
    if mask.ndim != 2 or mask.size == 0:
        raise ValueError(f"Expected {name} of shape [H, W] but got {mask.shape}.")
    return mask
