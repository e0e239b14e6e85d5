"""What is wrong with a data set: every record is read, and everything found is named and counted."""

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Literal, Protocol, runtime_checkable

import numpy as np

from segdpo.checks import IGNORE
from segdpo.data.formats.plain_folder import IDENTICAL
from segdpo.data.record import Record, RecordInfo, RecordSource, check_record, info_of
from segdpo.data.sources import Progress
from segdpo.files import DataError
from segdpo.masks import Mask, differ

Level = Literal["error", "info"]


@runtime_checkable
class KnowsItsFiles(Protocol):
    """A data set of files that says which of them it does not use."""

    extra_files: Sequence[str]
    other_files: Sequence[str]


@dataclass(frozen=True)
class Finding:
    """One thing found: `kind` is what reports count by, `id` the record ("": the whole data set)."""

    level: Level
    kind: str
    id: str
    message: str


def check_source(
    source: RecordSource,
    *,
    require_pairs: bool = False,
    allow: Sequence[str] = (),
    progress: Progress = iter,
    on_record: Callable[[int, Record, list[Finding]], None] | None = None,
) -> "Check":
    """Read every record of a data set and return what is wrong.

    Args:
        source: the records.
        require_pairs: a record without preferences is an error, not only information.
        allow: kinds of findings that are no errors.
        progress: wraps the numbers of the records, for a progress bar.
        on_record: called with the number of each record that could be read, the record, and what was found of it.
    """
    check = Check(source.classes, require_pairs, allow)
    if isinstance(source, KnowsItsFiles):
        for path in source.extra_files:
            check.add("error", "mask without image", path, "no image has its name; rename it or remove it")
        for path in source.other_files:
            check.add("info", "other file", path, "a file among the images that is no image")
    for index in progress(range(len(source))):
        before = len(check.findings)
        check.records += 1
        info, record = _read(source, index, check)
        if info:
            check.see_info(info)
        if record:
            check.see(record)
            if on_record:
                on_record(index, record, check.findings[before:])
    return check


@dataclass
class Check:
    """What a check has found so far; `findings` grows with each record.

    Attributes:
        records: how many records were offered.
        masks: candidate masks.
        pairs: preferences, without rankings.
        gold: records with a gold mask.
        masked, compared, judged: records with a candidate, with two or more, with a pair or a ranking.
        sizes: how many records have each height and width.
    """

    classes: tuple[str, ...]
    require_pairs: bool = False
    allow: Sequence[str] = ()
    findings: list[Finding] = field(default_factory=list)
    records: int = 0
    masks: int = 0
    pairs: int = 0
    gold: int = 0
    masked: int = 0
    compared: int = 0
    judged: int = 0
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    _contents: dict[bytes, RecordInfo] = field(default_factory=dict)
    _ids: Counter[str] = field(default_factory=Counter)
    _group_splits: dict[str, dict[str, str]] = field(default_factory=dict)

    @property
    def failed(self) -> bool:
        """Whether there is at least one error."""
        return any(finding.level == "error" for finding in self.findings)

    def counts(self) -> dict[tuple[Level, str], int]:
        """Return how often each kind was found, errors first."""
        found = Counter((finding.level, finding.kind) for finding in self.findings)
        return dict(sorted(found.items()))

    def add(self, level: Level, kind: str, name: str, message: str) -> None:
        """Note a finding; an allowed kind is only information."""
        name, message = (text.encode(errors="backslashreplace").decode() for text in (name, message))
        self.findings.append(Finding("info" if kind in self.allow else level, kind, name, message))

    def see(self, record: Record) -> None:
        """Check one record, alone and against those seen before."""
        self.masks += len(record.masks)
        self.pairs += len(record.pairs)
        self.gold += record.gold is not None
        self.masked += len(record.masks) > 0
        self.compared += len(record.masks) > 1
        self.judged += bool(record.pairs or record.ranking)
        try:
            check_record(record, self.classes)
        except DataError as error:
            self.add("error", error.kind, record.id, str(error))
            return
        self.sizes[record.image.shape[0], record.image.shape[1]] += 1
        self._see_masks(record)
        self._see_preferences(record)
        self._see_content(record)

    def see_info(self, info: RecordInfo) -> None:
        """Check that an id comes once and a group in one split."""
        self._ids[info.id] += 1
        if self._ids[info.id] == 2:
            self.add("error", "id twice", info.id, "the id comes more than once")
        if not info.split or not info.group:
            return
        splits = self._group_splits.setdefault(info.group, {})
        for split, other in splits.items() if info.split not in splits else ():
            message = f"group {info.group!r} is in {split} ({other}) and in {info.split} ({info.id})"
            self.add("error", "group in two splits", info.id, message)
        splits.setdefault(info.split, info.id)

    def _see_masks(self, record: Record) -> None:
        named = list(zip(record.mask_names, record.masks, strict=True))
        for name, mask in [*named, *([("gold", record.gold)] if record.gold is not None else [])]:
            if problem := _emptiness(mask):
                self.add("error", "empty mask", record.id, f"mask {name!r} {problem}")

    def _see_preferences(self, record: Record) -> None:
        names, ranked = record.mask_names, list(combinations(record.ranking, 2))
        for a, b in [*((pair.chosen, pair.rejected) for pair in record.pairs), *ranked]:
            if not differ(record.masks[a], record.masks[b]):
                message = f"{names[a]!r} is preferred to {names[b]!r} but they show the same"
                self.add("error", "pair without difference", record.id, message)
        if skipped := record.meta.get(IDENTICAL):
            self.add("info", "identical pair skipped", record.id, f"identical masks: {skipped}")
        if not record.pairs and not ranked:
            level: Level = "error" if self.require_pairs else "info"
            self.add(level, "no preference", record.id, "the image has no pair and no ranking")

    def _see_content(self, record: Record) -> None:
        digest = hashlib.blake2b(repr(record.image.shape).encode(), digest_size=16)
        digest.update(record.image.tobytes())
        info = RecordInfo(record.id, record.group, record.split)
        other = self._contents.setdefault(digest.digest(), info)
        if other is info:
            return
        message = f"the same image as {other.id!r}"
        if other.split == record.split:
            self.add("error", "duplicate image", record.id, message)
        else:
            splits = f"{other.split or 'no split'} and {record.split or 'no split'}"
            self.add("error", "image in two splits", record.id, f"{message}: {splits}")


def _read(source: RecordSource, index: int, check: Check) -> tuple[RecordInfo | None, Record | None]:
    name = f"record {index}"
    info = None
    try:
        info = info_of(source, index)
        name = info.id
        return info, source[index]
    except DataError as error:
        check.add("error", error.kind, name, str(error))
        return info, None


def _emptiness(mask: Mask) -> str:
    """Return what is wrong with a mask of which all known pixels are alike, "" if there is nothing."""
    values = set(np.unique(mask).tolist())
    if values == {0, IGNORE}:
        return "has only 0 and 255 (ignore); if 255 is the object, read it with values={255: 1}"
    return "is ignore (255) all over" if values == {IGNORE} else "has class 0 alone" if values == {0} else ""
