"""The options of PlainFolder for a folder as people have it: what is told from names and from a sample of the masks.

What cannot be told without doubt is asked: a DataError of kind "question" names the option to set. Options that were
set are never changed, and once all are set, nothing is guessed. Whatever the guess, each mask is checked against it
when it is read.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from inspect import signature
from pathlib import Path
from typing import Any, Literal

import numpy as np

from segdpo.data.formats.file_patterns import CLASS_FILES, list_files
from segdpo.data.formats.folder import parse_object
from segdpo.data.formats.plain_folder import FOLDER, PlainFolder, read_index
from segdpo.data.guessing.class_files import read_classes
from segdpo.data.guessing.layout import Layout, MaskFiles, Role, find_layout, with_files
from segdpo.data.guessing.mask_format import BINARY, MANY, Asked, FormatGuess, Names, guess_format, question
from segdpo.data.images import value_range_of
from segdpo.data.mask_files.annotations import PREDICTION, names_of_images, read_annotation_files
from segdpo.data.mask_files.decode import MaskFormat
from segdpo.data.mask_files.facts import describe_mask
from segdpo.data.record import SPLITS, check_classes
from segdpo.files import MAX_TEXT_BYTES, DataError, read_file

log = logging.getLogger(__name__)

Auto = Literal["auto"]
AUTO: Auto = "auto"
DEPTH = 6  # folders, from the root
LOOKED_AT = 4  # images whose depth is looked at
SAMPLE = 50  # masks that are decoded for the guess, of all sets together
FEWEST_GROUPS = 5
OBJECTS = {"segmentationobject", "instances", "instance", "instance_masks"}
NNUNET = "dataset.json"
GROUP_COLUMNS = ("group", "patient", "patient_id", "subject", "subject_id", "sequence")


@dataclass(frozen=True)
class Guess:
    """What was found in a folder.

    Args:
        options: of PlainFolder, all of them but `root`.
        line: what was guessed, in one line; "" if nothing had to be.
    """

    options: Mapping[str, Any]
    line: str

    @property
    def plain(self) -> dict[str, Any]:
        """The options as plain values, for a yaml or a command line."""
        return {name: _plain(value) for name, value in self.options.items()}


@dataclass(frozen=True)
class Given:
    """The options that can be guessed, and are where they are "auto"."""

    classes: Sequence[str] | Auto = AUTO
    masks: Mapping[str, str] | Auto | None = AUTO
    gold: str | None = AUTO
    images: str = AUTO
    index: str | None = AUTO
    mask_format: MaskFormat | Auto = AUTO
    candidates_format: MaskFormat | Auto | None = AUTO
    group: str | None = AUTO
    split: str | None = AUTO
    value_range: Sequence[float] | Auto | None = AUTO

    @property
    def complete(self) -> bool:
        """Whether nothing is left to guess."""
        return all(value != AUTO for value in vars(self).values())


def plain_folder(
    root: str | Path,
    classes: Sequence[str] | Auto = AUTO,
    masks: Mapping[str, str] | Auto | None = AUTO,
    gold: str | None = AUTO,
    *,
    images: str = AUTO,
    index: str | None = AUTO,
    mask_format: MaskFormat | Mapping[str, Any] | Auto = AUTO,
    candidates_format: MaskFormat | Mapping[str, Any] | Auto | None = AUTO,
    values: Mapping[int, int] | None = None,
    group: str | None = AUTO,
    group_pattern: str | None = None,
    split: str | None = AUTO,
    pairs: Sequence[Sequence[str]] = (),
    channels: int | None = 3,
    value_range: Sequence[float] | Auto | None = AUTO,
) -> PlainFolder:
    """Return the records of a folder as people have it; what is "auto" is guessed, and said in one line.

    The arguments are those of PlainFolder. `values` is a short form of mask_format={kind: ids, values: …}.

    Raises:
        DataError: of kind "question": something could be meant in two ways, and the message has the option to set.
    """
    found = guess(root, {name: value for name, value in locals().items() if name != "root"})
    if found.line:
        log.info("%s", found.line)
    return PlainFolder(root, **found.options)


def guess(root: str | Path, options: Mapping[str, Any] | None = None) -> Guess:
    """Return the options of PlainFolder for a folder.

    Args:
        root: the folder.
        options: those of `plain_folder` that were set.
    """
    given, rest = _given(options or {})
    if given.complete:
        return Guess(vars(given) | rest, "")
    root = Path(root)
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; name the folder of your images with data.root=FOLDER.")
    files = list_files(root, DEPTH)
    layout = find_layout(files, None if given.images == AUTO else given.images)
    sets = _sets(root, files, layout, given)
    gold, candidates = _roles(sets, given)
    names = Names(check_classes(tuple(given.classes))) if given.classes != AUTO else find_names(root, files)
    found = _formats(root, gold, candidates, names, given)
    index, rows = _index(root, files, layout, given)
    formats = [one.format for one in (found.gold, found.candidates) if one] or [MaskFormat()]
    guessed: dict[str, Any] = {
        "images": layout.images,
        "gold": gold.pattern if gold else None,
        "masks": {one.name: one.pattern for one in candidates},
        "classes": list(found.classes),
        "mask_format": formats[0],
        "candidates_format": formats[-1] if formats[-1] != formats[0] else None,
        "index": index,
        "group": None if rest.get("group_pattern") else _group(layout, rows, given),
        "split": _split(layout, rows, given),
        "value_range": _value_range(root, layout, given),
    }
    unused = [one.pattern for one in sets if one is not gold and one.pattern not in guessed["masks"].values()]
    return Guess(guessed | rest, _line(layout, gold, candidates, found, guessed, unused))


def _given(options: Mapping[str, Any]) -> tuple[Given, dict[str, Any]]:
    """Return the options that can be guessed, and the others."""
    known = [name for name in signature(plain_folder).parameters if name != "root"]
    if unknown := sorted(options.keys() - {*known}):
        raise DataError(f"Expected options of data=plain ({', '.join(known)}) but got {', '.join(unknown)}.")
    options = dict(options)
    if values := options.pop("values", None):
        options |= {"mask_format": MaskFormat(values=values), "candidates_format": None}  # of all masks
    for name in ("mask_format", "candidates_format"):
        if isinstance(options.get(name), Mapping):
            options[name] = MaskFormat(**options[name])
    names = [one.name for one in fields(Given)]
    return Given(**{name: options[name] for name in names if name in options}), {
        name: value for name, value in options.items() if name not in names
    }


def _plain(value: Any) -> Any:
    if isinstance(value, MaskFormat):
        default = MaskFormat()
        parts = {one.name: getattr(value, one.name) for one in fields(value)}
        return {name: _plain(part) for name, part in parts.items() if name == "kind" or part != getattr(default, name)}
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, tuple | list) else value


def find_names(root: Path, files: Sequence[str]) -> Names:
    """Return the names of the classes that a file in the folder has; those of several files must agree."""
    found: dict[str, Names] = {}
    for path in files:
        name = path.rpartition("/")[2].lower()
        if name == NNUNET:
            if labels := nnunet_labels(root / path):
                found[path] = Names(tuple(labels), source=path)
        elif name in CLASS_FILES:
            known = read_classes(read_file(root / path), str(root / path))
            found[path] = Names(known.classes, known.colors, known.values, known.background is None, path)
    if len({one.classes for one in found.values()}) > 1:
        listed = "; ".join(f"{path}: {', '.join(one.classes)}" for path, one in found.items())
        raise question(f"{root}: Expected one list of classes but got {listed}; set data.classes=[…], or remove one.")
    with_colors = [one for one in found.values() if one.colors]
    return (with_colors or list(found.values()) or [Names()])[0]


@dataclass(frozen=True)
class _Formats:
    """How gold and candidates become class ids, and the classes."""

    gold: FormatGuess | None
    candidates: FormatGuess | None
    classes: tuple[str, ...]


def _formats(
    root: Path, gold: MaskFiles | None, candidates: Sequence[MaskFiles], names: Names, given: Given
) -> _Formats:
    count = max(4, SAMPLE // (len(candidates) + (gold is not None) or 1))
    of_gold = None
    if gold:
        asked = Asked(f"{root}, gold in {gold.pattern}", "data.mask_format")
        of_gold = _format_of(root, gold, names, asked, given.mask_format, count)
        names = names if names.classes else Names(of_gold.classes, source=f"gold in {gold.pattern}")
    found: dict[str, FormatGuess] = {}
    own = given.candidates_format if given.candidates_format is not None and gold else given.mask_format
    for one in candidates:
        asked = Asked(
            f"{root}, candidates in {one.pattern}",
            "data.candidates_format" if gold else "data.mask_format",
            one.role == "predictions",
        )
        found[one.name] = _format_of(root, one, names, asked, own, count)
        names = names if names.classes else Names(found[one.name].classes, source=f"masks in {one.pattern}")
    kinds = {name: one.text for name, one in found.items()}
    if len({repr(one.format) for one in found.values()}) > 1:
        raise question(
            f"{root}: Expected candidates that store classes alike but got {kinds}; set data.masks={{NAME: FOLDER}} to "
            "those that do, or save all in one way."
        )
    return _Formats(of_gold, next(iter(found.values()), None), names.classes or BINARY)


def _format_of(
    root: Path, masks: MaskFiles, names: Names, asked: Asked, given: MaskFormat | Auto | None, count: int
) -> FormatGuess:
    """Return the format of some masks: that which was set, or a guess from a sample."""
    if isinstance(given, MaskFormat):
        return FormatGuess(given, names.classes or classes_of(given), given.kind)
    if masks.annotations:
        kind = masks.annotations.kind
        text = "COCO" if kind == "coco_rle" else "Label Studio"
        if bare := masks.annotations.images - sum(len(made) for made in masks.annotations.documents.values()):
            text += f", {bare} images without annotation" if kind == "coco_rle" else ""
        return FormatGuess(MaskFormat(kind), names.classes or masks.annotations.classes, text)
    paths = [root / masks.files[name] for name in spread(sorted(masks.files), count)]
    samples = {str(path): read_file(path) for path in paths}
    return guess_format(samples, names, asked)


def spread(items: Sequence[str], count: int) -> list[str]:
    """Return at most `count` of the items, in equal steps.

    >>> spread("abcdefg", 3)
    ['a', 'd', 'g']
    """
    return [items[k] for k in np.unique(np.linspace(0, len(items) - 1, min(count, len(items))).astype(int))]


def classes_of(mask_format: MaskFormat) -> tuple[str, ...]:
    """Return names for the classes of a format that was set without them."""
    if mask_format.colors:
        return tuple(name for name in mask_format.colors if name != "ignore")
    top = max([number for number in mask_format.values.values() if number != 255] + [mask_format.foreground])
    return BINARY if top == 1 else ("background", *(f"class_{number}" for number in range(1, top + 1)))


def _roles(sets: Sequence[MaskFiles], given: Given) -> tuple[MaskFiles | None, list[MaskFiles]]:
    """Return the gold masks and the candidates; ask if the names do not tell."""
    by_pattern = {one.pattern: one for one in sets}
    if given.masks != AUTO:
        named = [replace(by_pattern[text], name=name) for name, text in (given.masks or {}).items()]
        rest = [one for one in sets if one.pattern not in (given.masks or {}).values()]
    else:
        named, rest = [one for one in sets if one.role in ("annotator", "predictions")], list(sets)
    if given.gold != AUTO:
        gold = by_pattern[given.gold] if given.gold else None
    else:
        gold = _gold([one for one in rest if one.role not in ("annotator", "predictions")], named)
    if given.masks == AUTO:
        others = [one for one in rest if one not in named and one is not gold]
        named += _more_candidates(others, gold, given)
    return gold, [one for one in named if one is not gold or given.masks != AUTO]


def _gold(possible: Sequence[MaskFiles], candidates: Sequence[MaskFiles]) -> MaskFiles | None:
    sure = [one for one in possible if one.role == "gold"]
    plain = [one for one in possible if one.role == "masks"]
    drawn = [one for one in candidates if one.role == "annotator"]
    if len(sure) == 1:
        return sure[0]
    if not possible:
        return None
    if len(possible) == 1 and plain and not drawn:
        return plain[0]
    listed = ", ".join(f"{one.pattern} (of {len(one.files)} images)" for one in (sure or possible))
    besides = f" beside those of {', '.join(one.name for one in drawn)}" if drawn else ""
    raise question(
        f"Expected to know which masks are gold but got {listed}{besides}; set "
        f"data.gold={(sure or possible)[0].pattern} if these are the true ones, or data.gold=null if none are: then "
        "they are candidates to compare."
    )


def _more_candidates(others: Sequence[MaskFiles], gold: MaskFiles | None, given: Given) -> list[MaskFiles]:
    """Return which of the masks are candidates that are neither gold nor of an annotator.

    All are if there is no gold. If gold was named, the others were not; they are left out, and the line says so.
    """
    others = [one for one in others if one.name.lower() not in OBJECTS]
    if not others or gold is None:
        return list(others)
    if given.gold != AUTO:
        return []
    masks = ",".join(f"{one.name}:{one.pattern}" for one in others)
    raise question(
        f"Expected masks besides gold ({gold.pattern}) to say whose they are but got "
        f"{', '.join(one.pattern for one in others)}; set 'data.masks={{{masks}}}' if they are candidates to compare, "
        "or 'data.masks={}' to leave them out."
    )


def _sets(root: Path, files: Sequence[str], layout: Layout, given: Given) -> list[MaskFiles]:
    """Return the sets of masks in the folder, and those that were named."""
    found = {one.pattern: one for one in [*layout.masks, *_annotation_sets(root, files, layout)]}
    named = list(given.masks.values()) if isinstance(given.masks, Mapping) else []
    for text in [*named, *([given.gold] if given.gold not in (AUTO, None) else [])]:
        if text not in found:
            found[text] = with_files(MaskFiles(text, text, "unknown"), layout.files, files)
    wanted = {*named, given.gold}
    return [one for one in found.values() if one.pattern in wanted or _is_mask_set(root, one)]


def _annotation_sets(root: Path, files: Sequence[str], layout: Layout) -> list[MaskFiles]:
    """Return the masks in .json files of COCO and Label Studio: one set, or one of each annotator."""
    sets = []
    for path, found in read_annotation_files(root, files).items():
        people = [name for name in found.documents if not name.startswith(PREDICTION)]
        several = len({name for made in people for name in found.documents[made]}) < sum(
            len(found.documents[made]) for made in people
        )
        for maker in ["", *(name for name in found.documents if several or name not in people)]:
            if maker == "" and several:
                continue
            text, documents = f"{path}#{maker}" if maker else path, found.of(maker, str(root / path))
            known = names_of_images(documents, layout.files)
            role: Role = "masks" if not maker else "predictions" if maker.startswith(PREDICTION) else "annotator"
            own = {name: text for name in known if name in layout.files}
            extra = [f"{text}: {name}" for name in known if name not in layout.files]
            sets.append(MaskFiles(text, maker or path, role, own, extra, found))
    return sets


def _is_mask_set(root: Path, masks: MaskFiles) -> bool:
    """Return whether files of the images' names are masks, by their folder's name or because they have few numbers."""
    if masks.role != "unknown" or masks.annotations:
        return True
    for path in list(masks.files.values())[:LOOKED_AT]:
        try:
            facts = describe_mask(read_file(root / path), str(root / path))
        except DataError:
            return False
        listed = facts.values if facts.values is not None else facts.colors
        if facts.lossy or listed is None or len(listed) > MANY:
            return False
    return True


def nnunet_labels(path: Path) -> list[str]:
    """Return the labels that a dataset.json of nnU-Net names, by their numbers; [] for another file of this name."""
    values = parse_object(read_file(path, MAX_TEXT_BYTES), str(path))
    labels = values.get("labels")
    if not isinstance(labels, dict) or "classes" in values:
        return []
    number_of = {str(name): number for name, number in labels.items() if name != "ignore"}
    if all(name.isdecimal() for name in number_of):  # of the first version: number → name
        number_of = {str(name): int(number) for number, name in labels.items()}
    names = sorted(number_of, key=lambda name: number_of[name])
    if [number_of[name] for name in names] != list(range(len(names))):
        raise DataError(f"{path}: Expected labels with the numbers 0, 1, 2 … but got {labels}.", "class")
    return names


def _index(
    root: Path, files: Sequence[str], layout: Layout, given: Given
) -> tuple[str | None, Mapping[str, Mapping[str, str]]]:
    """Return the table of the images with its rows: index.csv, or the only other .csv that has their ids."""
    if given.index != AUTO:
        return given.index, read_index(root / given.index) if given.index else {}
    tables = [path for path in files if path.lower().endswith(".csv") and "/" not in path]
    found = {path: rows for path in tables if (rows := _rows(root / path)) and rows.keys() & layout.files.keys()}
    if len(found) > 1 and "index.csv" not in found:
        raise question(
            f"{root}: Expected one table of the images but got {', '.join(found)}; set data.index={next(iter(found))}, "
            "or data.index=null for none."
        )
    name = "index.csv" if "index.csv" in found else next(iter(found), None)
    return name, found.get(name or "", {})


def _rows(path: Path) -> Mapping[str, Mapping[str, str]]:
    """Return the rows of a table with a column `id`, none of another one."""
    try:
        return read_index(path)
    except DataError as error:
        if path.name == "index.csv":
            raise
        log.debug("%s", error)
        return {}


def _group(layout: Layout, rows: Mapping[str, Mapping[str, str]], given: Given) -> str | None:
    if given.group != AUTO:
        return given.group
    columns = next(iter(rows.values()), {})
    if column := next((name for name in GROUP_COLUMNS if name in columns), None):
        return column
    folders = {"/".join(name.split("/")[1 if layout.split else 0 : -1]) for name in layout.files}
    return FOLDER if FEWEST_GROUPS <= len(folders) < len(layout.files) else None


def _split(layout: Layout, rows: Mapping[str, Mapping[str, str]], given: Given) -> str | None:
    if given.split != AUTO:
        return given.split
    if layout.split:
        return FOLDER
    return "split" if rows and all(row.get("split") in SPLITS for row in rows.values()) else None


def _value_range(root: Path, layout: Layout, given: Given) -> Sequence[float] | None:
    if given.value_range != AUTO:
        return given.value_range
    paths = [root / path for path in spread(list(layout.files.values()), SAMPLE)]
    try:
        if value_range_of(paths, LOOKED_AT) is None:
            return None
        low, high = value_range_of(paths) or (0, 1)
    except DataError as error:  # the check, or the training, names the image
        log.debug("%s", error)
        return None
    raise question(
        f"{root}: Expected images of 8 bits a channel but got others, whose numbers have to be mapped to 0 … 255; set "
        f"'data.value_range=[{low:g},{high:g}]', the middle 99 % of their numbers, or the range that your device has."
    )


def _line(
    layout: Layout,
    gold: MaskFiles | None,
    candidates: Sequence[MaskFiles],
    found: _Formats,
    options: Mapping[str, Any],
    unused: Sequence[str],
) -> str:
    classes = ", ".join(found.classes)
    parts = [f"{len(layout.files)} images in {_shown(options['images'])}"]
    if gold and found.gold:
        parts.append(f"gold of {len(gold.files)} in {_shown(gold.pattern)} ({found.gold.text} → {classes})")
    else:
        parts.append("no gold")
    listed = ", ".join(f"{one.name} ({len(one.files)})" for one in candidates)
    if candidates and found.candidates:
        parts.append(f"candidates {listed}: {found.candidates.text}" + ("" if gold else f" → {classes}"))
    else:
        parts.append("no candidates")
    parts += [f"{key} by {options[key]}" for key in ("index", "split", "group") if options[key]]
    if extra := sum(len(one.extra) for one in [*candidates, *([gold] if gold else [])]):
        parts.append(f"{extra} {'mask' if extra == 1 else 'masks'} without image")
    if unused:
        parts.append(f"not used: {', '.join(map(_shown, unused))}")
    if layout.unused:
        parts.append(f"no file has the name of an image in {', '.join(map(_shown, layout.unused))}")
    return "plain: " + ", ".join(parts)


def _shown(text: str) -> str:
    return text if "*" in text or text.endswith(".json") else f"{text}/"
