"""Mining: candidates × a judge × questions → records with preferences."""

from dataclasses import dataclass, field, replace

import numpy as np

from segdpo.data import MaskSource, Record, RecordInfo, RecordSource, info_of, record_rng
from segdpo.preferences.candidates import distinct
from segdpo.preferences.diversity import Diversity, diversity_by_source
from segdpo.preferences.judges import CannotJudge, Judge
from segdpo.preferences.questions import Questions

SCORES = "scores"
"""Where a mined record's meta has the judge's scores of its masks, separated by spaces."""
UNJUDGED = "unjudged"
"""Where the meta of a record without preferences says why it has none."""


@dataclass(frozen=True)
class Mining:
    """How records are mined.

    Args:
        candidates: the source of masks to choose between; one that asks a network must have been given it.
        judge: scores the masks.
        questions: makes pairs of the scored masks.
        seed: with the record's id, decides everything that is drawn.
        keep_duplicates: keep masks that equal an earlier one of the same image (they never form a pair).
        background: whether class 0 counts in the report on the sources.
    """

    candidates: MaskSource
    judge: Judge
    questions: Questions
    seed: int = 0
    keep_duplicates: bool = False
    background: bool = False


@dataclass(frozen=True, eq=False)
class Outcome:
    """The result for one record: `record` with its preferences, or the `reason` why it has none.

    Args:
        id: of the record.
        record: with masks, pairs and the ranking of all masks, best first (whatever the questions asked).
        reason: a short phrase that outcomes are counted by.
        detail: more about the reason.
        diversity: of the candidates of each source, before duplicates were dropped.
        notes: what the meta of a record that was judged but gives no pair would have had.
    """

    id: str
    record: Record | None = None
    reason: str = ""
    detail: str = ""
    diversity: dict[str, Diversity] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)


def mine_record(record: Record, mining: Mining) -> Outcome:
    """Make candidates, judge them and ask the questions.

    The number of duplicates dropped and the scores of the masks kept go into the record's meta.
    """
    try:
        offered = mining.candidates(record, record_rng(mining.seed, record.id, "candidates"))
    except CannotJudge as error:
        return Outcome(record.id, reason="no candidate", detail=str(error))
    if len(offered.masks) == 0:
        return Outcome(record.id, reason="no candidate")
    diversity = diversity_by_source(record, offered, background=mining.background)
    kept = offered if mining.keep_duplicates else distinct(offered)
    if len(distinct(kept).masks) < 2:
        return Outcome(record.id, reason="all candidates are the same", diversity=diversity)
    # Candidates, judge and questions have generators of their own, so that another judge sees the same candidates.
    try:
        scores = mining.judge(record, kept.masks, record_rng(mining.seed, record.id, "judge"))
    except CannotJudge as error:
        return Outcome(record.id, reason="cannot be judged", detail=str(error), diversity=diversity)
    # "rule" is part of the seed: another word would draw other pairs than earlier versions did.
    pairs = mining.questions(scores, kept.masks, record_rng(mining.seed, record.id, "rule"))
    notes = {
        "duplicates_dropped": str(len(offered.masks) - len(kept.masks)),
        SCORES: " ".join(f"{score:.6g}" for score in scores),
    }
    if not pairs:
        return Outcome(record.id, reason="no pair to ask about", diversity=diversity, notes=notes)
    mined = replace(
        record,
        masks=kept.masks,
        mask_names=kept.names,
        pairs=pairs,
        ranking=tuple(int(number) for number in np.argsort(-scores, kind="stable")),
        meta=record.meta | notes,
    )
    return Outcome(record.id, record=mined, diversity=diversity)


def judged_masks(record: Record) -> int:
    """Return how many different masks of a mined record were judged; 0: none was."""
    return len(record.meta.get(SCORES, "").split())


@dataclass(frozen=True, eq=False)
class Mined:
    """The records of `source`, mined when they are first read.

    A record depends on (seed, its id) alone: neither on the order of access nor on the process. One that gives no pair
    keeps the masks it came with, has no preference, and says why in `meta["unjudged"]`. A data set that does not fit
    into memory, or whose candidates come from a network, is better mined to disk once.

    Args:
        source: of the records, as read from disk or made.
        candidates: see `Mining`.
        judge: see `Mining`.
        questions: see `Mining`.
        seed: see `Mining`.
        background: see `Mining`.
        keep: hold mined records in memory, each process its own; otherwise every access mines anew.
    """

    source: RecordSource
    candidates: MaskSource
    judge: Judge
    questions: Questions
    seed: int = 0
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
        """Return the source's description of a record and how many preferences it has; mines it the first time."""
        if index not in self._infos:
            record = self[index]
            info = info_of(self.source, index)
            self._infos[index] = replace(info, pairs=len(record.pairs), ranking=len(record.ranking))
        return self._infos[index]

    def _mine(self, record: Record) -> Record:
        mining = Mining(self.candidates, self.judge, self.questions, self.seed, background=self.background)
        outcome = mine_record(record, mining)
        if outcome.record is not None:
            return outcome.record
        # Preferences and scores that the record came with are not this judge's, so they are removed.
        why = outcome.reason + (f": {outcome.detail}" if outcome.detail else "")
        meta = {name: value for name, value in record.meta.items() if name != SCORES}
        return replace(record, pairs=(), ranking=(), meta=meta | outcome.notes | {UNJUDGED: why})


def mined_of_old(
    source: RecordSource,
    mask_source: MaskSource,
    judge: Judge,
    rule: Questions,
    seed: int = 0,
    ranking: bool = False,
    background: bool = False,
    keep: bool = True,
) -> Mined:
    """Return `Mined` for a saved configuration from before its options were renamed."""
    return Mined(source, mask_source, judge, rule, seed, background, keep)
