"""One page that shows a data set: what was found wrong, and masks over images; a single file, no network needed."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

from segdpo.data import Check, Finding, Record, class_colours, data_uri, overlay, shrink
from segdpo.masks import Mask

SHOWN_FINDINGS = 200
SHOWN_PAIRS = 6
STYLE = """
:root { color-scheme: light dark; --line: #8884; --error: #c62828; --warning: #b26a00; --info: #5f6b7a; }
@media (prefers-color-scheme: dark) { :root { --error: #ff8a80; --warning: #ffcc80; --info: #a9b4c2; } }
* { box-sizing: border-box; }
body { font: 15px/1.5 system-ui, sans-serif; margin: 0 auto; padding: 1rem clamp(.75rem, 3vw, 2rem);
max-width: 1440px; }
h1 { font-size: 1.4rem; margin: 0; overflow-wrap: anywhere; } h2 { font-size: 1.1rem; margin: 1.75rem 0 .5rem; }
h3 { font-size: .95rem; margin: 0; overflow-wrap: anywhere; } p { margin: .25rem 0; }
ul { list-style: none; margin: .25rem 0; padding: 0; } li { overflow-wrap: anywhere; padding: .15rem 0; }
.error { color: var(--error); } .warning { color: var(--warning); } .info, small { color: var(--info); }
.legend { display: flex; flex-wrap: wrap; gap: .25rem 1rem; } .legend i { display: inline-block; width: .9em;
height: .9em; border-radius: 3px; margin-right: .35em; vertical-align: -.1em; }
main { display: flex; flex-wrap: wrap; gap: .75rem 1.5rem; margin-top: .75rem; }
article { border-top: 1px solid var(--line); padding-top: .5rem; max-width: 100%; }
.tiles { display: flex; flex-wrap: wrap; gap: .5rem; margin-top: .5rem; }
figure { margin: 0; width: 124px; }
@media (max-width: 480px) { article { width: 100%; } figure { width: calc((100% - 1rem) / 3); } }
figcaption { font-size: .8rem; overflow-wrap: anywhere; line-height: 1.3; }
img { width: 100%; height: auto; display: block; border-radius: 4px; }
summary { cursor: pointer; }
"""


@dataclass
class ContactSheet:
    """Collects records as small pictures: `images` of `total`, evenly spread, and as many more that have errors.

    `tile` is the longest side of a picture in pixels.
    """

    classes: tuple[str, ...]
    total: int
    images: int = 40
    tile: int = 160
    _cards: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self._cards)

    def see(self, index: int, record: Record, findings: Sequence[Finding] = ()) -> None:
        """Add record `index` if it is one of the evenly spread ones, or faulty and there is room."""
        step = max(1, -(-self.total // max(1, self.images)))
        faulty = any(finding.level == "error" for finding in findings)
        if (index % step == 0 and self.images) or (faulty and len(self) < 2 * self.images):
            self.add(record, findings)

    def add(self, record: Record, findings: Sequence[Finding] = ()) -> None:
        """Append a record: its image, each mask over it, gold, and the pairs in words."""
        group = record.group if record.group != record.id else ""
        facts = [f"{name} {value}" for name, value in (("group", group), ("split", record.split)) if value]
        wrong = [finding for finding in findings if finding.level != "info"]
        tiles = [self._tile(record, None, "image")]
        if record.gold is not None:
            tiles.append(self._tile(record, record.gold, "gold"))
        tiles += [self._tile(record, mask, name) for name, mask in zip(record.mask_names, record.masks, strict=True)]
        self._cards.append(
            f"<article><h3>{escape(record.id)} <small>{escape(' · '.join(facts))}</small></h3>"
            f"{_items(wrong, with_id=False)}{_preferences(record)}<div class=tiles>{''.join(tiles)}</div></article>"
        )

    def html(self, title: str, check: Check) -> str:
        """Return the page."""
        counts = "".join(
            f"<li class={level}>{number} × {escape(kind)} <small>{level}</small></li>"
            for (level, kind), number in check.counts().items()
        )
        verdict = "<span class=error>something is wrong</span>" if check.failed else "nothing is wrong"
        shown = [finding for finding in check.findings if finding.level != "info"][:SHOWN_FINDINGS]
        listed = f"<details open><summary>First {len(shown)} findings</summary>{_items(shown, with_id=True)}</details>"
        return (
            "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>"
            f"<title>{escape(title)}</title><style>{STYLE}</style><body><h1>{escape(title)}</h1>"
            f"<p>{check.records} images, {check.masks} candidate masks, {check.pairs} pairs: {verdict}.</p>"
            f"<ul>{counts}</ul>{listed if shown else ''}"
            f"<h2>{len(self)} of {check.records} images</h2>{self._legend()}"
            f"<main>{''.join(self._cards)}</main></body></html>\n"
        )

    def _tile(self, record: Record, mask: Mask | None, name: str) -> str:
        image, small = shrink(record.image, mask, self.tile)
        picture = data_uri(image if small is None else overlay(image, small, self.classes))
        label = escape(name)
        alt = escape(f"{record.id}: {name}", quote=True)
        height, width = image.shape[:2]
        return (
            f'<figure><img src="{picture}" alt="{alt}" width={width} height={height} loading=lazy>'
            f"<figcaption>{label}</figcaption></figure>"
        )

    def _legend(self) -> str:
        first = 1 if self.classes[0] == "background" else 0
        colours = class_colours(len(self.classes) - first).tolist()
        keys = [
            f"<span><i style='background:rgb({red},{green},{blue})'></i>{number} {escape(name)}</span>"
            for number, (name, (red, green, blue)) in enumerate(zip(self.classes[first:], colours, strict=True), first)
        ]
        stripes = "repeating-linear-gradient(135deg,#a0a0a0 0 3px,transparent 3px 6px)"
        keys.append(f"<span><i style='background:{stripes}'></i>255 ignored</span>")
        return f"<p class=legend>{''.join(keys)}</p>"


def _preferences(record: Record) -> str:
    names = record.mask_names
    said = [
        f"{names[pair.chosen]} > {names[pair.rejected]}" + (f" ({pair.weight:g})" if pair.weight != 1 else "")
        for pair in record.pairs[:SHOWN_PAIRS]
    ]
    if len(record.pairs) > SHOWN_PAIRS:
        said.append(f"… {len(record.pairs) - SHOWN_PAIRS} more")
    if record.ranking:
        said.append("ranking " + " > ".join(names[k] for k in record.ranking))
    return f"<p><small>{escape(' · '.join(said))}</small></p>" if said else ""


def _items(findings: Sequence[Finding], with_id: bool) -> str:
    rows = [
        f"<li class={finding.level}>{escape(finding.kind)}: "
        f"{escape(f'{finding.id}: ' if with_id and finding.id else '')}{escape(finding.message)}</li>"
        for finding in findings
    ]
    return f"<ul>{''.join(rows)}</ul>" if rows else ""
