"""The contact sheet of a data set: what was found wrong, and masks drawn over images."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from segdpo.data import Check, Finding, Record, Verdict, class_colours, data_uri, first_shown, fit, overlay
from segdpo.masks import Mask
from segdpo.reports.html.page import render

SHOWN_FINDINGS = 200
SHOWN_PAIRS = 6


@dataclass(frozen=True)
class Tile:
    """A small picture as a `data:` address, with its size in pixels."""

    name: str
    uri: str
    width: int
    height: int


@dataclass(frozen=True)
class Card:
    """A record: group and split, warnings and errors, pairs in words, and pictures of image, gold and masks."""

    id: str
    facts: str
    findings: Sequence[Finding]
    preferences: str
    tiles: Sequence[Tile]


@dataclass
class ContactSheet:
    """Collects records as small pictures, and returns them as an HTML page.

    Args:
        classes: the names of the classes.
        total: the number of records that will be offered.
        images: how many evenly spread records are shown; as many more may be shown because they have errors.
        tile: the longest side of a picture in pixels.
    """

    classes: tuple[str, ...]
    total: int
    images: int = 40
    tile: int = 160
    _cards: list[Card] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self._cards)

    def offer(self, index: int, record: Record, findings: Sequence[Finding] = ()) -> None:
        """Add record `index` if it is one of the evenly spread ones, or has an error and there is room."""
        step = max(1, -(-self.total // max(1, self.images)))
        faulty = any(finding.level == "error" for finding in findings)
        if (index % step == 0 and self.images) or (faulty and len(self) < 2 * self.images):
            self.add(record, findings)

    def add(self, record: Record, findings: Sequence[Finding] = ()) -> None:
        """Append a record."""
        group = record.group if record.group != record.id else ""
        facts = [f"{name} {value}" for name, value in (("group", group), ("split", record.split)) if value]
        masks = [("image", None), *([] if record.gold is None else [("gold", record.gold)])]
        masks += zip(record.mask_names, record.masks, strict=True)
        tiles = [self._draw(record, mask, name) for name, mask in masks]
        wrong = [finding for finding in findings if finding.level != "info"]
        self._cards.append(Card(record.id, " · ".join(facts), wrong, _preferences(record), tiles))

    def html(self, title: str, check: Check, judged: Verdict | None = None) -> str:
        """Return the page with the result of a check of the whole data set, and the verdict on it."""
        first = first_shown(self.classes)
        colours = class_colours(len(self.classes) - first).tolist()
        return render(
            "contact_sheet.html",
            title=title,
            check=check,
            verdict=judged,
            findings=[finding for finding in check.findings if finding.level != "info"][:SHOWN_FINDINGS],
            legend=list(zip(range(first, len(self.classes)), self.classes[first:], map(tuple, colours), strict=True)),
            cards=self._cards,
        )

    def _draw(self, record: Record, mask: Mask | None, name: str) -> Tile:
        side = min(self.tile, max(record.image.shape[:2]))
        picture = fit(record.image, side) if mask is None else overlay(record.image, mask, self.classes, side=side)
        height, width = picture.shape[:2]
        return Tile(name, data_uri(picture), width, height)


def _preferences(record: Record) -> str:
    names = record.mask_names
    parts = [
        f"{names[pair.chosen]} > {names[pair.rejected]}" + (f" ({pair.weight:g})" if pair.weight != 1 else "")
        for pair in record.pairs[:SHOWN_PAIRS]
    ]
    if len(record.pairs) > SHOWN_PAIRS:
        parts.append(f"… {len(record.pairs) - SHOWN_PAIRS} more")
    if record.ranking:
        parts.append("ranking " + " > ".join(names[k] for k in record.ranking))
    return " · ".join(parts)
