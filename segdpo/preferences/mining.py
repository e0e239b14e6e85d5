"""Mining: candidates × a judge × questions → records with preferences."""

import json
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from segdpo.data import MaskSource, Pair, Record, RecordInfo, RecordSource, info_of, record_rng
from segdpo.files import decode_arrays, encode_arrays
from segdpo.preferences.candidates import distinct
from segdpo.preferences.diversity import Diversity, diversity_by_source
from segdpo.preferences.judges import CannotJudge, Judge
from segdpo.preferences.questions import Questions

# Bytes of mined records that are held in memory as they are: images, masks and gold.
KEPT_BYTES = 2**30
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
        keep: hold mined records in memory, each process its own, up to KEPT_BYTES; of the others, the masks and
            preferences alone, compressed. Otherwise every access mines anew.
    """

    source: RecordSource
    candidates: MaskSource
    judge: Judge
    questions: Questions
    seed: int = 0
    background: bool = False
    keep: bool = True
    _records: dict[int, Record] = field(default_factory=dict, init=False, repr=False)
    _packed: dict[int, bytes] = field(default_factory=dict, init=False, repr=False)
    _infos: dict[int, RecordInfo] = field(default_factory=dict, init=False, repr=False)
    _room: list[int] = field(default_factory=lambda: [KEPT_BYTES], init=False, repr=False)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes of the source."""
        return self.source.classes

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Record:
        if index in self._records:
            return self._records[index]
        record = self.source[index]
        if index in self._packed:
            return unpack_judged(self._packed[index], record)
        mined = self._mine(record)
        info = info_of(self.source, index)
        self._infos[index] = replace(info, pairs=len(mined.pairs), ranking=len(mined.ranking))
        if self.keep:
            self._remember(index, mined, record)
        return mined

    def describe(self, index: int) -> RecordInfo:
        """Return the source's description of a record and how many preferences it has; mines it the first time."""
        if index not in self._infos:
            self[index]
        return self._infos[index]

    def _remember(self, index: int, mined: Record, record: Record) -> None:
        size = mined.image.nbytes + mined.masks.nbytes + (0 if mined.gold is None else mined.gold.nbytes)
        if size <= self._room[0]:
            self._records[index] = mined
            self._room[0] -= size
        else:
            self._packed[index] = pack_judged(mined, record)

    def _mine(self, record: Record) -> Record:
        mining = Mining(self.candidates, self.judge, self.questions, self.seed, background=self.background)
        outcome = mine_record(record, mining)
        if outcome.record is not None:
            return outcome.record
        # Preferences and scores that the record came with are not this judge's, so they are removed.
        why = outcome.reason + (f": {outcome.detail}" if outcome.detail else "")
        meta = {name: value for name, value in record.meta.items() if name != SCORES}
        return replace(record, pairs=(), ranking=(), meta=meta | outcome.notes | {UNJUDGED: why})


def pack_judged(mined: Record, record: Record) -> bytes:
    """Return what mining gave `record`, compressed: the preferences, and the masks unless the record came with them."""
    new_meta = {name: value for name, value in mined.meta.items() if record.meta.get(name) != value}
    arrays: dict[str, Any] = {
        "pairs": np.array([(pair.chosen, pair.rejected) for pair in mined.pairs], np.int64).reshape(-1, 2),
        "weights": np.array([pair.weight for pair in mined.pairs], np.float64),
        "ranking": np.array(mined.ranking, np.int64),
        "meta": np.array([json.dumps(new_meta)], np.str_),
    }
    if mined.mask_names != record.mask_names or not np.array_equal(mined.masks, record.masks):
        arrays |= {"masks": mined.masks, "names": np.array(mined.mask_names, np.str_)}
    return encode_arrays(**arrays)


def unpack_judged(data: bytes, record: Record) -> Record:
    """Return the mined record whose `pack_judged` is `data`, with the image and gold of `record`.

    Raises:
        ValueError, KeyError, TypeError, IndexError: `data` is damaged, or of another record.
    """
    kept = decode_arrays(data, record.id)
    pairs = [Pair(int(a), int(b), float(w)) for (a, b), w in zip(kept["pairs"], kept["weights"], strict=True)]
    meta = json.loads(str(kept["meta"][0]))
    masks = kept.get("masks", record.masks)
    names = tuple(kept["names"].tolist()) if "names" in kept else record.mask_names
    if masks.shape[1:] != record.image.shape[:2] or masks.dtype != np.uint8 or len(names) != len(masks):
        raise ValueError(f"Expected masks of the image's size but got {masks.dtype} {list(masks.shape)}.")
    ranking = tuple(kept["ranking"].tolist())
    return replace(record, masks=masks, mask_names=names, pairs=tuple(pairs), ranking=ranking, meta=record.meta | meta)


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
