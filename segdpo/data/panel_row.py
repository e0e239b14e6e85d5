"""One row of a panel: what training hands over to be drawn, and reports draw."""

from dataclasses import dataclass

from segdpo.pairs.record import Image, Mask


@dataclass(frozen=True, eq=False)
class PanelRow:
    """One image and the masks to show beside it; those that are None leave their place empty.

    `image` is uint8 [H, W, C]; masks are class ids uint8 [H, W], 255 = ignore.
    """

    id: str
    image: Image
    chosen: Mask | None = None
    rejected: Mask | None = None
    reference: Mask | None = None
    policy: Mask | None = None
    gold: Mask | None = None
