"""From a data set, a source of masks, a judge and a rule to records with preferences.

What becomes of a record depends on (seed, id) and on nothing else: not on the order, not on the other records, not on
where an earlier run was interrupted.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from segdpo.data.errors import DataError
from segdpo.data.record_source import RecordSource, info_of
from segdpo.pairs.candidates import distinct
from segdpo.pairs.candidates_value import Candidates, MaskSource
from segdpo.pairs.diversity import Diversity, diversity_by_source
from segdpo.pairs.judges import Judge
from segdpo.pairs.overlap import CannotJudge
from segdpo.pairs.preferences import Rule
from segdpo.pairs.record import Record
from segdpo.pairs.seeding import record_rng

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
