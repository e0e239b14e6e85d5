"""Mining to disk with a journal, so that an interrupted run resumes."""

import json
import math
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from segdpo.data import Packed, RecordSource, file_of, first_difference, info_of, is_text, packed
from segdpo.files import DataError, exists, read_file, remove_unfinished, write_atomically
from segdpo.preferences.diversity import Diversity, SourceReport, report_sources
from segdpo.preferences.mining import Mining, Outcome, mine_record

Selection = Callable[[RecordSource], list[int]]
# What one run can resume: a line of the journal takes about 1 kB, and 2 kB of memory.
MAX_RECORDS, MAX_JOURNAL_BYTES = 10**6, 2**33


@dataclass(frozen=True)
class Summary:
    """A run in numbers.

    Args:
        selected: how many records were selected.
        mined: how many of them have preferences.
        masks: of the mined records.
        pairs: of the mined records.
        skipped: how often each reason occurred, the most frequent first.
        examples: the first record of each reason.
        sources: a report on each source of candidates.
    """

    selected: int
    mined: int
    masks: int
    pairs: int
    skipped: dict[str, int]
    examples: dict[str, str]
    sources: list[SourceReport]


class Writer(Protocol):
    """Where mined records go, such as a PackWriter; only one process at a time can hold it."""

    @property
    def done_ids(self) -> Collection[str]:
        """Ids of the records that this or an interrupted run has written."""
        ...

    def write_packed(self, record: Packed) -> object:
        """Add a record, or compare it with the one written."""
        ...

    def finish(self) -> object:
        """Write what is still in memory, and mark the whole as complete."""
        ...

    def close(self) -> object:
        """Release the files, finished or not."""
        ...


def journal_path(out: Path) -> Path:
    """Return where the journal of the data set at `out` is."""
    return out.with_name(f"{out.name}.mining.jsonl")


@dataclass(frozen=True)
class Line:
    """A line of the journal, one an outcome: `reason` is "" for a mined record."""

    id: str
    reason: str
    detail: str
    masks: int
    pairs: int
    diversity: dict[str, Diversity]

    @classmethod
    def of(cls, outcome: Outcome) -> "Line":
        """Return the line for an outcome."""
        masks, pairs = (len(outcome.record.masks), len(outcome.record.pairs)) if outcome.record else (0, 0)
        return cls(outcome.id, outcome.reason, outcome.detail, masks, pairs, outcome.diversity)


@dataclass(frozen=True)
class Result:
    """What a record gives: its line in the journal, and the bytes that a pack stores if it has preferences."""

    line: Line
    packed: Packed | None = None


@dataclass(frozen=True, eq=False)
class Miner:
    """Mines record `number` of `source`.

    The result depends on the mining, the record and the file of its image alone, so that any process may make it.
    """

    source: RecordSource
    mining: Mining

    def __call__(self, number: int) -> Result:
        """Read the record, mine it and pack it."""
        info = info_of(self.source, number)
        try:
            record = self.source[number]
        except DataError as error:
            return Result(Line.of(Outcome(info.id, reason=f"unreadable: {error.kind}", detail=str(error))))
        outcome = mine_record(record, self.mining)
        if outcome.record is None:
            return Result(Line.of(outcome))
        return Result(Line.of(outcome), packed(outcome.record, self.source.classes, file_of(self.source, number)))


Mine = Callable[[int], Result]
Engine = Callable[[Mine, Sequence[int]], Iterator[Result]]
"""Calls a function for each number, here or elsewhere, and yields the results in the order of the numbers."""


def in_this_process(mine: Mine, numbers: Sequence[int]) -> Iterator[Result]:
    """Mine one record after another: the engine without a cluster."""
    return map(mine, numbers)


def run_mining(
    source: RecordSource,
    mine: Mine,
    journal: "Journal",
    writer: Writer,
    *,
    selection: Selection,
    engine: Engine = in_this_process,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Summary:
    """Mine the selected records into the writer, in their order in the source, and close the writer.

    With the journal and the writer of an interrupted run it resumes that run.

    Args:
        source: of the records.
        mine: mines a record of the source, such as a `Miner`.
        journal: what became of each record.
        writer: of the records that have preferences.
        selection: of the records to mine.
        engine: calls `mine`.
        progress: called with the number of records that are done and the number selected.
    """
    try:
        if journal.selected is None:
            # Selected once and kept: a network may select other records on another machine.
            journal.begin(_checked_number(sorted(selection(source))))
        else:
            journal.resume()
        numbers = _numbers(source, journal.selected or [])
        _write_all(partial(engine, mine), journal, writer, numbers, progress)
        if all(journal.skipped(record_id) for record_id in numbers):
            raise DataError(_nothing(journal.summary()), "preference")
        writer.finish()
    finally:
        writer.close()
    journal.finish(list(numbers))
    return journal.summary()


class Journal:
    """The journal at `path`, new or as an earlier run left it.

    A journal that was begun with other `settings` (anything that JSON can hold) is refused, since its records and the
    new ones would not belong together.
    """

    def __init__(self, path: Path, settings: dict[str, Any]):
        self.path, self.settings = path, json.loads(json.dumps(settings))
        self.selected: list[int] | None = None
        self.finished = False
        self._lines: dict[str, Line] = {}
        if exists(path):
            self._read()

    def begin(self, selected: list[int]) -> None:
        """Store which records are to be mined, in this order."""
        self.selected = selected
        self._rewrite([])

    def resume(self) -> None:
        """Prepare to add lines to those of an earlier run, whose last line may be incomplete."""
        self.finished = False
        self._rewrite(list(self._lines))

    def add(self, line: Line) -> None:
        """Add the outcome for one record."""
        self._lines[line.id] = line
        with self.path.open("a", encoding="utf-8") as file:
            file.write(_dump(asdict(line)))

    def has(self, record_id: str) -> bool:
        """Say whether the outcome for a record is known."""
        return record_id in self._lines

    def skipped(self, record_id: str) -> bool:
        """Say whether a record is known to have been skipped."""
        return record_id in self._lines and bool(self._lines[record_id].reason)

    def finish(self, order: list[str]) -> None:
        """Sort the lines by `order`, the ids of the selection, and mark the journal as finished."""
        self.finished = True
        self._rewrite(order)

    def summary(self) -> Summary:
        """Return the run in numbers."""
        lines = list(self._lines.values())
        mined = [line for line in lines if not line.reason]
        return Summary(
            selected=len(self.selected or ()),
            mined=len(mined),
            masks=sum(line.masks for line in mined),
            pairs=sum(line.pairs for line in mined),
            skipped=dict(Counter(line.reason for line in lines if line.reason).most_common()),
            examples={line.reason: line.detail or line.id for line in reversed(lines) if line.reason},
            sources=report_sources(line.diversity for line in lines),
        )

    def _rewrite(self, order: list[str]) -> None:
        head = {"settings": self.settings, "selected": self.selected, "finished": self.finished}
        self._lines = {record_id: self._lines[record_id] for record_id in order}
        # Atomically, since a journal without its first line could not be read.
        lines = [_dump(head), *(_dump(asdict(line)) for line in self._lines.values())]
        remove_unfinished(self.path.parent, self.path.name)
        write_atomically(self.path, "".join(lines).encode())

    def _read(self) -> None:
        content = read_file(self.path, MAX_JOURNAL_BYTES)
        # A line without its end was cut off when the run was interrupted.
        *whole, _ = content.split(b"\n")
        head, *lines = whole or [b""]
        try:
            begun = json.loads(head)
            settings, selected, finished = begun["settings"], begun["selected"], begun["finished"]
            if not _is_selection(selected) or not isinstance(finished, bool):
                raise TypeError(f"selected {selected!r:.80}, finished {finished!r:.80}")
            parsed = [_parse(json.loads(line)) for line in lines]
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            raise DataError(
                f"{self.path}: Expected the journal of a mining run but got {error!r}; restore it, or remove "
                "it: what is mined then is compared with what was mined."
            ) from error
        if settings != self.settings:
            raise DataError(
                f"{self.path}: Expected the settings that this run was begun with, but "
                f"{first_difference(settings, self.settings)}; use those settings, or write elsewhere.",
                "version",
            )
        self.selected, self.finished = selected, finished
        self._lines = {line.id: line for line in parsed}


def _is_selection(selected: object) -> bool:
    whole = isinstance(selected, list) and all(type(index) is int and index >= 0 for index in selected)
    return selected is None or whole


def _dump(content: dict[str, Any]) -> str:
    return json.dumps(_without_nan(content), ensure_ascii=False, allow_nan=False) + "\n"


def _without_nan(content: Any) -> Any:
    """Replace NaN, which JSON does not have, by null."""
    if isinstance(content, dict):
        return {key: _without_nan(value) for key, value in content.items()}
    return None if isinstance(content, float) and math.isnan(content) else content


def _parse(line: dict[str, Any]) -> Line:
    diversity = {}
    for source, numbers in line.pop("diversity").items():
        known: dict[str, Any] = {key: math.nan if value is None else value for key, value in numbers.items()}
        if not all(
            (type(value) in (int, float) and abs(value) < 2**53) or value is math.nan for value in known.values()
        ):
            raise TypeError(f"numbers {known!r:.200}")
        diversity[source] = Diversity(**known)
    parsed = Line(**line, diversity=diversity)
    texts, counts = (parsed.id, parsed.reason, parsed.detail), (parsed.masks, parsed.pairs)
    if not all(isinstance(text, str) and is_text(text) for text in texts) or not all(type(n) is int for n in counts):
        raise TypeError(f"the line {line!r:.200}")
    return parsed


def _write_all(
    mine_all: Callable[[Sequence[int]], Iterator[Result]],
    journal: Journal,
    writer: Writer,
    numbers: dict[str, int],
    progress: Callable[[int, int], None],
) -> None:
    written = frozenset(writer.done_ids)
    if others := sorted(written - numbers.keys()):
        raise DataError(
            f"Expected records that are selected but {others[0]!r} is in the pack, one of {len(others)}; mine the data "
            "set that the pack was begun with, or write elsewhere.",
            "version",
        )
    waiting = [
        number
        for record_id, number in numbers.items()
        if not journal.skipped(record_id) and not (record_id in written and journal.has(record_id))
    ]
    done = len(numbers) - len(waiting)
    progress(done, len(numbers))
    for count, result in enumerate(mine_all(waiting), done + 1):
        journal.add(result.line)
        progress(count, len(numbers))
        if result.packed is not None:
            writer.write_packed(result.packed)  # one that was written before is compared


def _checked_number(selected: list[int]) -> list[int]:
    """Refuse, before any work, more records than a run can resume."""
    if len(selected) > MAX_RECORDS:
        raise DataError(
            f"Expected at most {MAX_RECORDS} records in one run but {len(selected)} are selected; mine them in parts: "
            f"selection=part selection.number=0 selection.parts={-(-len(selected) // MAX_RECORDS)}, and so on."
        )
    return selected


def _numbers(source: RecordSource, selected: list[int]) -> dict[str, int]:
    number: dict[str, int] = {}
    for index in selected:
        if index >= len(source):
            raise DataError(
                f"Expected records below {len(source)} but {index} is selected; mine the data set that the journal "
                "was begun with, or write elsewhere.",
                "version",
            )
        record_id = info_of(source, index).id
        if record_id in number:
            raise DataError(
                f"Expected a different id for each record but records {number[record_id]} and {index} are both "
                f"{record_id!r}; rename one.",
                "id",
            )
        number[record_id] = index
    return number


def _nothing(summary: Summary) -> str:
    reasons = [f"{count} × {reason} (first: {summary.examples[reason]})" for reason, count in summary.skipped.items()]
    return (
        f"Expected at least one record with a pair but none of {summary.selected} has one: "
        f"{', '.join(reasons) or 'none was selected'}."
    )
