"""The manifest of a folder, JSONL or CSV: one line an image, with its masks and preferences."""

import csv
import io
import json
import math
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from segdpo.data.images import SUFFIXES
from segdpo.data.record import check_id, check_mask_name, check_split, is_text
from segdpo.files import DataError

SHOWN_ERRORS = 20
# 255 masks with the longest names and all of their pairs take less.
MAX_LINE = 2**26
COLUMNS = ("id", "suffix", "masks", "gold", "chosen", "rejected", "weight", "ranking", "group", "split")
PAIR_COLUMNS = ("chosen", "rejected", "weight")
META = "meta."
GOLD = {"": None, "1": True, "0": False}


@dataclass(frozen=True)
class NamedPair:
    """The mask called `chosen` is preferred to the one called `rejected`."""

    chosen: str
    rejected: str
    weight: float = 1.0


@dataclass(frozen=True)
class Entry:
    """What a manifest says of one image; None for `masks` and `gold` means: whatever the folders have."""

    id: str
    suffix: str = ".png"
    masks: tuple[str, ...] | None = None
    gold: bool | None = None
    pairs: tuple[NamedPair, ...] = ()
    ranking: tuple[str, ...] = ()
    group: str = ""
    split: str = ""
    meta: dict[str, str] = field(default_factory=dict)


def parse_jsonl(text: str, name: str) -> list[Entry]:
    """Return the entries of a JSONL manifest; errors begin with `name`. Empty lines are skipped."""
    lines = ((number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip())
    return _collect(((number, partial(parse_line, line)) for number, line in lines), name)


def format_jsonl(entries: Iterable[Entry]) -> str:
    """Return the JSONL manifest of the entries; keys that hold their default are left out."""
    return "".join(format_line(entry) + "\n" for entry in entries)


def parse_csv(text: str, name: str) -> list[Entry]:
    """Return the entries of a CSV manifest, in the order of their first rows; errors begin with `name`."""
    reader = csv.DictReader(io.StringIO(text.removeprefix("\ufeff"), newline=""), strict=True)
    rows: dict[str, list[tuple[int, dict[str, str]]]] = {}
    try:
        _check_header(list(reader.fieldnames or ()), name)
        for row in reader:
            number = reader.line_num
            if None in row or None in row.values():
                raise DataError(f"{name}, line {number}: Expected {len(reader.fieldnames or ())} cells.", "manifest")
            rows.setdefault(row["id"], []).append((number, row))
    except csv.Error as error:
        raise DataError(f"{name}, line {reader.line_num}: Expected CSV but got {error}.", "manifest") from None
    return _collect(((group[0][0], partial(_parse_rows, group)) for group in rows.values()), name)


def format_csv(entries: Iterable[Entry]) -> str:
    """Return the CSV manifest of the entries."""
    entries = list(entries)
    keys = sorted({key for entry in entries for key in entry.meta})
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, [*COLUMNS, *(META + key for key in keys)], restval="", lineterminator="\r\n")
    writer.writeheader()
    for entry in entries:
        shared = _shared_cells(entry)
        for pair in entry.pairs or (None,):
            weight = {} if pair is None else {"chosen": pair.chosen, "rejected": pair.rejected, "weight": pair.weight}
            writer.writerow({**shared, **weight})
    return text.getvalue()


def parse_line(line: str, where: str = "") -> Entry:
    """Return the entry of one JSONL line; errors begin with `where`."""
    if len(line) > MAX_LINE:
        raise DataError(f"{where}Expected a line of at most {MAX_LINE} characters but got {len(line)}.", "manifest")
    try:
        values = json.loads(line, object_pairs_hook=_without_duplicates, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{where}Expected one JSON object a line but got {line[:80]!r} ({error}).", "manifest"
        ) from None
    if not isinstance(values, dict) or not isinstance(values.get("id"), str):
        raise DataError(f"{where}Expected a JSON object with a string 'id' but got {line[:80]!r}.", "manifest")
    if unknown := sorted(values.keys() - Entry.__dataclass_fields__.keys()):
        known = ", ".join(Entry.__dataclass_fields__)
        raise DataError(f"{where}Expected the keys {known} but got {', '.join(unknown)}.", "manifest")
    if "pairs" in values:
        values["pairs"] = tuple(_parse_pair(pair, where) for pair in _typed(values, "pairs", list, where))
    for key in ("masks", "ranking"):
        # Null stands for masks that were not listed, as in Entry.
        if key in values and not (key == "masks" and values[key] is None):
            values[key] = tuple(_typed(values, key, list, where))
    return check_entry(Entry(**values), where)


def format_line(entry: Entry) -> str:
    """Return the JSONL line of an entry, without a line end."""
    values: dict[str, Any] = {"id": entry.id}
    default = Entry(entry.id)
    for key in ("suffix", "masks", "gold", "pairs", "ranking", "group", "split", "meta"):
        value = getattr(entry, key)
        if value != getattr(default, key):
            values[key] = [_pair_values(pair) for pair in value] if key == "pairs" else value
    return json.dumps(values, ensure_ascii=False)


def check_entry(entry: Entry, where: str = "") -> Entry:
    """Return the entry if its names, pairs and ranking are valid; else raise a DataError that begins with `where`."""
    check_id(entry.id, where)
    where = f"{where}id {entry.id!r}: "
    names = (*(entry.masks or ()), *entry.ranking, *(n for pair in entry.pairs for n in (pair.chosen, pair.rejected)))
    texts = (entry.suffix, entry.group, entry.split, *names)
    meta = [text for item in entry.meta.items() for text in item] if isinstance(entry.meta, dict) else [None]
    strings = all(isinstance(text, str) and is_text(text) for text in (*texts, *meta))
    if not strings or not (entry.gold is None or isinstance(entry.gold, bool)):
        raise DataError(
            f"{where}Expected strings for suffix, group, split, mask names and meta, and true or false for gold.",
            "manifest",
        )
    if entry.suffix.lower() not in SUFFIXES:
        raise DataError(f"{where}Expected a suffix of {', '.join(SUFFIXES)} but got {entry.suffix!r}.", "manifest")
    check_split(entry.split, where)
    for mask in names:
        check_mask_name(mask, where)
    _check_names(entry, where)
    return entry


def _collect(lines: Iterable[tuple[int, Callable[[str], Entry]]], name: str) -> list[Entry]:
    """Parse all lines and raise what is wrong with them as one error, so that all of it can be corrected at once."""
    entries: dict[str, Entry] = {}
    first: dict[str, int] = {}
    errors: list[str] = []
    for number, parse in lines:
        where = f"{name}, line {number}: "
        try:
            entry = parse(where)
            if entry.id in entries:
                raise DataError(f"{where}id {entry.id!r} is also on line {first[entry.id]}; keep one.", "manifest")
            entries[entry.id], first[entry.id] = entry, number
        except DataError as error:
            errors.append(str(error))
    if errors:
        more = [f"… and {len(errors) - SHOWN_ERRORS} more lines"] if len(errors) > SHOWN_ERRORS else []
        raise DataError("\n".join(errors[:SHOWN_ERRORS] + more), "manifest")
    return list(entries.values())


def _check_distinct(names: Iterable[str], what: str, where: str) -> None:
    """Raise if a name comes twice."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise DataError(f"{where}Expected each {what} once but got {name!r} twice.", "manifest")
        seen.add(name)


def _check_names(entry: Entry, where: str) -> None:
    _check_distinct(entry.masks or (), "mask", where)
    _check_distinct(entry.ranking, "mask of the ranking", where)
    if len(entry.ranking) == 1:
        raise DataError(f"{where}Expected a ranking of two or more masks but got {entry.ranking[0]!r}.", "preference")
    for pair in entry.pairs:
        if pair.chosen == pair.rejected:
            raise DataError(
                f"{where}Expected chosen and rejected to differ but both are {pair.chosen!r}; remove the pair.",
                "preference",
            )
        if not (math.isfinite(pair.weight) and pair.weight >= 0):
            raise DataError(f"{where}Expected a finite weight of at least 0 but got {pair.weight}.", "preference")
    if entry.masks is not None:
        named = {*entry.ranking, *(name for pair in entry.pairs for name in (pair.chosen, pair.rejected))}
        if strange := sorted(named - set(entry.masks)):
            raise DataError(
                f"{where}Expected preferences between {list(entry.masks)} but got {', '.join(map(repr, strange))}; "
                "add the mask to `masks` or remove the preference.",
                "preference",
            )


def _parse_pair(value: object, where: str) -> NamedPair:
    keys = ("chosen", "rejected", "weight")
    if isinstance(value, dict) and {"chosen", "rejected"} <= value.keys() <= set(keys):
        weight = value.get("weight", 1.0)
        # JSON's whole numbers have no end, and float() refuses what it cannot hold.
        if type(weight) is float or (type(weight) is int and abs(weight) <= sys.float_info.max):
            return NamedPair(value["chosen"], value["rejected"], float(weight))
    raise DataError(
        f'{where}Expected a pair {{"chosen": …, "rejected": …, "weight": …}} but got {value!r}.', "manifest"
    )


def _pair_values(pair: NamedPair) -> dict[str, Any]:
    weight = {} if pair.weight == 1 else {"weight": pair.weight}
    return {"chosen": pair.chosen, "rejected": pair.rejected, **weight}


def _typed(values: dict[str, Any], key: str, kind: type, where: str) -> Any:
    if not isinstance(values[key], kind):
        raise DataError(f"{where}Expected a {kind.__name__} for {key!r} but got {values[key]!r}.", "manifest")
    return values[key]


def _without_duplicates(items: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(items)
    if len(values) < len(items):
        raise ValueError("a key comes twice")
    return values


def _no_constant(name: str) -> Iterator[None]:
    raise ValueError(f"{name} is no number")


def _check_header(columns: list[str], name: str) -> None:
    strange = [column for column in columns if column not in COLUMNS and not column.startswith(META)]
    if strange or "id" not in columns or len(set(columns)) < len(columns):
        raise DataError(
            f"{name}, line 1: Expected comma-separated columns of {', '.join(COLUMNS)}, {META}…, each once and id "
            f"among them, but got {columns}.",
            "manifest",
        )


def _parse_rows(rows: list[tuple[int, dict[str, str]]], where: str) -> Entry:
    """Return the entry of the rows of one id."""
    first = rows[0][1]
    for number, row in rows[1:]:
        differing = [key for key in row if key not in PAIR_COLUMNS and row[key] != first[key]]
        if differing or not row.get("chosen"):
            got = f"a different {differing[0]}" if differing else "no pair"
            raise DataError(
                f"{where}id {first['id']!r} has {got} on line {number}; rows of an id differ in their pair alone.",
                "manifest",
            )
    gold = first.get("gold", "")
    if gold not in GOLD:
        raise DataError(f"{where}Expected gold 1, 0 or nothing but got {gold!r}.", "manifest")
    entry = Entry(
        id=first["id"],
        suffix=first.get("suffix") or ".png",
        masks=tuple(first["masks"].split("|")) if first.get("masks") else None,
        gold=GOLD[gold],
        pairs=tuple(pair for number, row in rows if (pair := _parse_csv_pair(row, where, number))),
        ranking=tuple(first["ranking"].split(">")) if first.get("ranking") else (),
        group=first.get("group", ""),
        split=first.get("split", ""),
        meta={key.removeprefix(META): text for key, text in first.items() if key.startswith(META) and text},
    )
    return check_entry(entry, where)


def _parse_csv_pair(row: dict[str, str], where: str, number: int) -> NamedPair | None:
    chosen, rejected, weight = (row.get(key, "") for key in PAIR_COLUMNS)
    if not (chosen or rejected or weight):
        return None
    try:
        return NamedPair(chosen, rejected, float(weight or 1))
    except ValueError:
        raise DataError(
            f"{where}Expected a number for weight but got {weight!r} on line {number}.", "manifest"
        ) from None


def _shared_cells(entry: Entry) -> dict[str, str]:
    return {
        "id": entry.id,
        "suffix": entry.suffix,
        "masks": "|".join(entry.masks or ()),
        "gold": {value: cell for cell, value in GOLD.items()}[entry.gold],
        "ranking": ">".join(entry.ranking),
        "group": entry.group,
        "split": entry.split,
        **{META + key: text for key, text in entry.meta.items()},
    }
