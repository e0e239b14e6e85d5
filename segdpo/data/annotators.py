"""Simulated annotators: masks as people draw them quickly, each with a systematic error of its own."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from zlib import crc32

import cv2
import numpy as np

from segdpo.checks import IGNORE
from segdpo.data.record import Candidates, Record
from segdpo.masks import Mask, PlaneRegion, close_gaps, displace, drop_thin, grow_by, object_classes, smooth_noise

Style = Callable[[Mask, np.random.Generator], Mask]
"""Takes a good mask and random numbers, and returns the mask that this annotator draws."""
Amount = float | Sequence[float]
"""Pixels of an image whose shorter side is 64; a pair (low, high) is drawn for each mask."""


def _range(amount: Amount) -> tuple[float, float]:
    if isinstance(amount, int | float):
        return float(amount), float(amount)
    if len(amount) != 2:
        raise ValueError(f"Expected an amount of pixels or a range (low, high) but got {amount}.")
    return float(amount[0]), float(amount[1])


@dataclass(frozen=True)
class Annotator:
    """Draws a mask with systematic faults, in this order; 0 leaves a fault out.

    Amounts are pixels of a 64² image and scale with the shorter side. All classes are drawn, the larger ones first.

    Args:
        missed_thin: parts thinner than this are not drawn.
        merged: gaps narrower than this are painted over.
        generous: the outline runs this far outside.
        polygon: the outline is a polygon, at most this far from the true outline.
        noise: standard deviation of a random displacement along the contour.

    >>> mask = np.zeros((64, 64), np.uint8)
    >>> mask[20:40, 20:40] = 1
    >>> int(Annotator(generous=1)(mask, np.random.default_rng(0)).sum() - mask.sum())
    80
    """

    missed_thin: Amount = 0.0
    merged: Amount = 0.0
    generous: Amount = 0.0
    polygon: Amount = 0.0
    noise: Amount = 0.0

    def __post_init__(self) -> None:
        """Refuse amounts that are not numbers of pixels."""
        for field in fields(self):
            low, high = _range(getattr(self, field.name))
            if not 0 <= low <= high < np.inf:
                raise ValueError(
                    f"Expected {field.name} to be pixels ≥ 0, or a range (low, high) of them, "
                    f"but got {getattr(self, field.name)}."
                )

    def __call__(self, mask: Mask, rng: np.random.Generator) -> Mask:
        """Return the mask as this annotator draws it; ignored pixels stay ignored."""
        unit = min(checked_mask(mask).shape) / 64
        thin, gap, outside, polygon, noise = (
            unit * rng.uniform(*_range(amount))
            for amount in (self.missed_thin, self.merged, self.generous, self.polygon, self.noise)
        )
        drawn = drop_thin(mask, thin) if thin else mask
        drawn = grow_by(close_gaps(drawn, gap), outside)
        if polygon:
            drawn = as_polygons(drawn, polygon)
        if noise:
            dy, dx = (noise * smooth_noise(mask.shape, 2 * unit, rng) for _ in range(2))
            drawn = displace(drawn, dy, dx)
        return drawn.copy() if drawn is mask else drawn


STYLES: Mapping[str, Style] = {
    "generous": Annotator(generous=(1, 3), noise=0.4),
    "polygon": Annotator(missed_thin=3, generous=1, polygon=(1.5, 3), noise=0.2),
    "missed_thin": Annotator(missed_thin=5, generous=(0, 1), noise=0.5),
    "merged": Annotator(merged=(4, 7), generous=1, noise=0.7),
}
"""Four annotators, each with the fault it is named after and a little of the others'."""


def annotate(
    record: Record,
    rng: np.random.Generator,
    styles: Mapping[str, Style] | Sequence[str] = STYLES,
    start: str = "gold",
) -> Candidates:
    """Return one mask of each annotator, drawn from the record's gold or another of its masks: a source of masks.

    Args:
        record: the record.
        rng: the random numbers.
        styles: names and their annotators (or functions `(mask, rng) -> mask` of your own), or names of `STYLES`.
        start: "gold", or the name of the mask to start from.
    """
    mask = starting_mask(record, start)
    chosen = styles if isinstance(styles, Mapping) else {name: _style(name) for name in styles}
    if not chosen:
        raise ValueError("Expected at least one style of annotator but got none.")
    # Each has a generator of its own, by name: adding or leaving out an annotator does not change what others draw.
    seed = int(rng.integers(2**63))
    drawn = [style(mask, np.random.default_rng([seed, crc32(name.encode())])) for name, style in chosen.items()]
    return Candidates(np.stack(drawn), tuple(chosen))


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


def as_polygons(mask: Mask, tolerance: float) -> Mask:
    """Redraw every part as a filled polygon, at most `tolerance` pixels from its outline; holes are lost.

    Larger classes are drawn first, so that a nucleus lies on its cell.
    """
    objects = (mask != 0) & (mask != IGNORE)
    # Pixels that the polygons of two touching classes leave open between them keep their class.
    drawn: Mask = np.where(objects, mask, 0) * _fill_polygons(objects, tolerance)
    for class_id in object_classes(mask):
        drawn[_fill_polygons(mask == class_id, tolerance) > 0] = class_id
    drawn[mask == IGNORE] = IGNORE
    return drawn


def _fill_polygons(region: PlaneRegion, tolerance: float) -> Mask:
    contours, _ = cv2.findContours(region.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    filled = np.zeros(region.shape, np.uint8)
    for contour in contours:
        cv2.fillPoly(filled, [cv2.approxPolyDP(contour, tolerance, closed=True)], 1)
    return filled


def _style(name: str) -> Style:
    if name not in STYLES:
        raise ValueError(f"Expected a style of {', '.join(STYLES)} but got {name!r}.")
    return STYLES[name]
