"""What a source of masks returns: the value that sources hand to judges and mining."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from segdpo.pairs.record import Masks, Record


@dataclass(frozen=True, eq=False)
class Candidates:
    """K masks of one image, uint8 [K, H, W] with 255 = ignore, and a name for each.

    A name is "source" or "source-variant" ("tta-flip_x"): reports put together what shares the part before the "-".
    """

    masks: Masks
    names: tuple[str, ...]

    def __post_init__(self) -> None:
        """Refuse what no judge and no store could use."""
        if self.masks.dtype != np.uint8 or self.masks.ndim != 3:
            raise ValueError(
                "Expected candidate masks as uint8 class ids of shape [K, H, W] "
                f"but got {self.masks.dtype} of shape {self.masks.shape}."
            )
        if len(self.names) != len(self.masks):
            raise ValueError(f"Expected one name a mask but got {len(self.names)} names for {len(self.masks)} masks.")


MaskSource = Callable[[Record, np.random.Generator], Candidates]
