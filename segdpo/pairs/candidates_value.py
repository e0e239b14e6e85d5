"""What a source of masks returns: the value that sources hand to judges and mining."""

from dataclasses import dataclass

from segdpo.pairs.record import Masks


@dataclass(frozen=True, eq=False)
class Candidates:
    """K masks of one image, uint8 [K, H, W] with 255 = ignore, and a name for each."""

    masks: Masks
    names: tuple[str, ...]
