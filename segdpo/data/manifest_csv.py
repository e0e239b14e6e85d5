"""The CSV form of the manifest: what a spreadsheet can open; one row a pair, or one row for an image without pairs.

Columns: id, and any of suffix, masks (`a|b|c`), gold (1 or 0), chosen, rejected, weight, ranking (`a>b>c`), group,
split, and `meta.<key>`. A record's rows repeat what belongs to the image. An empty cell means "not said", so CSV
cannot hold an empty meta value, and an image without masks is one whose mask files are not there.
"""

import csv
import io
from collections.abc import Iterable
from functools import partial

from segdpo.data.errors import DataError
from segdpo.data.manifest import Entry, NamedPair, check_entry, collect

COLUMNS = ("id", "suffix", "masks", "gold", "chosen", "rejected", "weight", "ranking", "group", "split")
PAIR_COLUMNS = ("chosen", "rejected", "weight")
META = "meta."
GOLD = {"": None, "1": True, "0": False}


def parse_csv(text: str, name: str) -> list[Entry]:
    """Return the entries of a CSV manifest, in the order of their first rows; `name` opens each error."""
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
    return collect(((group[0][0], partial(_parse_rows, group)) for group in rows.values()), name)


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


def _check_header(columns: list[str], name: str) -> None:
    strange = [column for column in columns if column not in COLUMNS and not column.startswith(META)]
    if strange or "id" not in columns or len(set(columns)) < len(columns):
        raise DataError(
            f"{name}, line 1: Expected comma-separated columns of {', '.join(COLUMNS)}, {META}…, each once and id "
            f"among them, but got {columns}.",
            "manifest",
        )


def _parse_rows(rows: list[tuple[int, dict[str, str]]], where: str) -> Entry:
    """Return the entry that rows of one id make together."""
    first = rows[0][1]
    for number, row in rows[1:]:
        differing = [key for key in row if key not in PAIR_COLUMNS and row[key] != first[key]]
        if differing or not row.get("chosen"):
            said = f"a different {differing[0]}" if differing else "no pair"
            raise DataError(
                f"{where}id {first['id']!r} has {said} on line {number}; rows of an id say one thing.", "manifest"
            )
    gold = first.get("gold", "")
    if gold not in GOLD:
        raise DataError(f"{where}Expected gold 1, 0 or nothing but got {gold!r}.", "manifest")
    entry = Entry(
        id=first["id"],
        suffix=first.get("suffix") or ".png",
        masks=tuple(first["masks"].split("|")) if first.get("masks") else None,
        gold=GOLD[gold],
        pairs=tuple(pair for number, row in rows if (pair := _parse_pair(row, where, number))),
        ranking=tuple(first["ranking"].split(">")) if first.get("ranking") else (),
        group=first.get("group", ""),
        split=first.get("split", ""),
        meta={key.removeprefix(META): text for key, text in first.items() if key.startswith(META) and text},
    )
    return check_entry(entry, where)


def _parse_pair(row: dict[str, str], where: str, number: int) -> NamedPair | None:
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
