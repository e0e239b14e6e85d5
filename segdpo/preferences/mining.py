"""Mining: candidates × a judge × a rule → records with preferences."""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from segdpo.data import Candidates, MaskSource, Record, RecordInfo, RecordSource, info_of, record_rng
from segdpo.files import DataError
from segdpo.preferences.candidates import distinct
from segdpo.preferences.diversity import Diversity, diversity_by_source
from segdpo.preferences.judges import CannotJudge, Judge
from segdpo.preferences.questions import Rule

SCORES = "scores"


@dataclass(frozen=True, eq=False)
class Outcome:
    """What became of one record: mined (`record`), or skipped for a `reason`, a short phrase to count by.

    `detail` says more of a skip. `diversity` describes the candidates of each source before duplicates were dropped.
    `notes` is what a record that was judged, but gives no pair, would have had in its meta: judging it had its price.
    """

    id: str
    record: Record | None = None
    reason: str = ""
    detail: str = ""
    diversity: dict[str, Diversity] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Recipe:
    """How a record is mined.

    `keep_duplicates`: keep masks that equal an earlier one of the same image (they never form a pair). `ranking`: also
    store the order of all masks by score, best first, for losses on rankings; it heeds no rule's gap and no choice.
    `background`: whether class 0 counts in the report of the sources.
    """

    mask_source: MaskSource
    judge: Judge
    rule: Rule
    seed: int = 0
    keep_duplicates: bool = False
    ranking: bool = False
    background: bool = False


def mine(
    source: RecordSource,
    recipe: Recipe,
    *,
    indices: Sequence[int] | None = None,
    done: Collection[str] = (),
    observe: Callable[[Outcome], None] = lambda outcome: None,
) -> Iterator[Record]:
    """Yield the mined records in the order of `indices` (left out: all), but those whose id is in `done`.

    Every record that is not `done` is reported to `observe`, the skipped ones with their reason.
    """
    for index in range(len(source)) if indices is None else indices:
        info = info_of(source, index)
        if info.id in done:
            continue
        try:
            record = source[index]
        except DataError as error:
            observe(Outcome(info.id, reason=f"unreadable: {error.kind}", detail=str(error)))
            continue
        outcome = mine_record(record, recipe)
        observe(outcome)
        if outcome.record is not None:
            yield outcome.record


def mine_record(record: Record, recipe: Recipe) -> Outcome:
    """Collect candidates, judge them and make pairs; or say why there are none.

    Candidates, judge and rule have generators of their own, so that another judge sees the same candidates. What was
    dropped and the scores (of the masks kept) go into the record's meta.
    """
    offered = recipe.mask_source(record, record_rng(recipe.seed, record.id, "candidates"))
    if len(offered.masks) == 0:
        return Outcome(record.id, reason="no candidate")
    diversity = diversity_by_source(record, offered, background=recipe.background)
    kept = offered if recipe.keep_duplicates else distinct(offered)
    if len(distinct(kept).masks) < 2:
        return Outcome(record.id, reason="all candidates are the same", diversity=diversity)
    try:
        scores = recipe.judge(record, kept.masks, record_rng(recipe.seed, record.id, "judge"))
    except CannotJudge as error:
        return Outcome(record.id, reason="cannot be judged", detail=str(error), diversity=diversity)
    pairs = recipe.rule(scores, kept.masks, record_rng(recipe.seed, record.id, "rule"))
    if not pairs:
        notes = _notes(offered, kept, scores)
        return Outcome(record.id, reason="no pair passes the rule", diversity=diversity, notes=notes)
    order = tuple(int(number) for number in np.argsort(-scores, kind="stable")) if recipe.ranking else ()
    mined = replace(
        record,
        masks=kept.masks,
        mask_names=kept.names,
        pairs=pairs,
        ranking=order,
        meta=record.meta | _notes(offered, kept, scores),
    )
    return Outcome(record.id, record=mined, diversity=diversity)


def judged_masks(record: Record) -> int:
    """Return how many different masks of a mined record were judged; 0: none was."""
    return len(record.meta.get(SCORES, "").split())


def _notes(offered: Candidates, kept: Candidates, scores: np.ndarray) -> dict[str, str]:
    return {
        "duplicates_dropped": str(len(offered.masks) - len(kept.masks)),
        SCORES: " ".join(f"{score:.6g}" for score in scores),
    }


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
