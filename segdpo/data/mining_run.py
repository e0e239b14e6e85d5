"""Mine a data set to disk so that a run killed at any moment goes on where it was, and ends as if it had not been."""

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Protocol

from segdpo.data.errors import DataError
from segdpo.data.image_files import ImageFile
from segdpo.data.mining import Outcome, Recipe, mine
from segdpo.data.mining_journal import Journal, Summary
from segdpo.data.record_source import RecordSource, info_of
from segdpo.data.source_files import FileSource
from segdpo.pairs.record import Record

Selection = Callable[..., list[int]]


class Writer(Protocol):
    """Where mined records go, such as a PackWriter; only one process at a time can hold it."""

    @property
    def done_ids(self) -> Collection[str]:
        """Ids of the records that this or an interrupted run has written."""
        ...

    def write(self, record: Record, image_file: ImageFile | None) -> object:
        """Add a record; `image_file` is its image as it lies on disk, where there is one."""
        ...

    def finish(self) -> object:
        """Write what is still in memory, and mark the whole as complete."""
        ...

    def close(self) -> object:
        """Let go, finished or not."""
        ...


def journal_path(out: Path) -> Path:
    """Return where the journal of the data set at `out` is."""
    return out.with_name(f"{out.name}.mining.jsonl")


def run_mining(
    source: RecordSource,
    recipe: Recipe,
    journal: Journal,
    writer: Writer,
    *,
    selection: Selection,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Summary:
    """Mine the selected records into the writer, in their order in the source, and return the run in numbers.

    With the journal and the writer of an interrupted run it goes on with that run. `progress` is told how many records
    are done, of how many. Closes the writer.
    """
    try:
        if journal.selected is None:
            # Looked up once: a network's choice need not be the same on another machine.
            journal.begin(sorted(selection(source, seed=recipe.seed)))
        else:
            journal.resume()
        selected = journal.selected or []
        number = _numbers(source, selected)
        _write_all(source, recipe, journal, writer, number, progress)
        if all(journal.skipped(record_id) for record_id in number):
            raise DataError(_nothing(journal.summary()), "preference")
        writer.finish()
    finally:
        writer.close()
    journal.finish(list(number))
    return journal.summary()


def _write_all(
    source: RecordSource,
    recipe: Recipe,
    journal: Journal,
    writer: Writer,
    number: dict[str, int],
    progress: Callable[[int, int], None],
) -> None:
    written = frozenset(writer.done_ids)
    done = {
        record_id
        for record_id in number
        if journal.skipped(record_id) or (record_id in written and journal.has(record_id))
    }
    count = len(done)
    progress(count, len(number))

    def observe(outcome: Outcome) -> None:
        nonlocal count
        journal.note(outcome)
        count += 1
        progress(count, len(number))

    for record in mine(source, recipe, indices=list(number.values()), done=done, observe=observe):
        if record.id not in written:
            file = source.image_file(number[record.id]) if isinstance(source, FileSource) else None
            writer.write(record, file)


def _numbers(source: RecordSource, selected: list[int]) -> dict[str, int]:
    number: dict[str, int] = {}
    for index in selected:
        if index >= len(source):
            raise DataError(
                f"Expected records below {len(source)} but {index} is selected; mine the data set that the journal "
                "was begun with, or delete the journal.",
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
