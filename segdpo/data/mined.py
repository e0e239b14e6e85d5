"""Preferences without a file on disk: each record is mined the moment that it is asked for."""

from dataclasses import dataclass, field, replace

from segdpo.data.mining import SCORES, Recipe, mine_record
from segdpo.data.record_source import RecordInfo, RecordSource, info_of
from segdpo.pairs.candidates_value import MaskSource
from segdpo.pairs.judges import Judge
from segdpo.pairs.preferences import Rule
from segdpo.pairs.record import Record


@dataclass(frozen=True, eq=False)
class Mined:
    """The records of `source` with candidates, pairs and, with `ranking`, a ranking by `judge` and `rule`.

    A record depends on (seed, its id) alone, as in `mine`: neither on the order of access nor on the process. One that
    gives no pair keeps the masks it came with, has no preference, and says why in `meta["unjudged"]`. `keep`: hold
    mined records in memory, each process its own; without it, every access mines anew. A data set that does not fit
    into memory, or that takes a network to mine, is better mined to disk once.
    """

    source: RecordSource
    mask_source: MaskSource
    judge: Judge
    rule: Rule
    seed: int = 0
    ranking: bool = False
    background: bool = False
    keep: bool = True
    _records: dict[int, Record] = field(default_factory=dict, init=False, repr=False)
    _infos: dict[int, RecordInfo] = field(default_factory=dict, init=False, repr=False)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes of the source."""
        return self.source.classes

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Record:
        if index in self._records:
            return self._records[index]
        record = self._mine(self.source[index])
        if self.keep:
            self._records[index] = record
        return record

    def describe(self, index: int) -> RecordInfo:
        """Return what the source says of a record, and how many preferences it has; mines it the first time."""
        if index not in self._infos:
            record = self[index]
            info = info_of(self.source, index)
            self._infos[index] = replace(info, pairs=len(record.pairs), ranking=len(record.ranking))
        return self._infos[index]

    def _mine(self, record: Record) -> Record:
        recipe = Recipe(
            self.mask_source, self.judge, self.rule, self.seed, ranking=self.ranking, background=self.background
        )
        outcome = mine_record(record, recipe)
        if outcome.record is not None:
            return outcome.record
        # Preferences, and scores, that the source came with were not made by this judge: they would pass for its own.
        why = outcome.reason + (f": {outcome.detail}" if outcome.detail else "")
        meta = {name: value for name, value in record.meta.items() if name != SCORES}
        return replace(record, pairs=(), ranking=(), meta=meta | outcome.notes | {"unjudged": why})
