"""Train, val and test: seeded, by group, so that no patient, frame or sequence is in two of them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from segdpo.data.record import RecordInfo, RecordSource, info_of
from segdpo.files import DataError

Numbers = NDArray[np.uint32]


@dataclass(frozen=True, eq=False)
class Splits:
    """Record numbers of each split, ascending, uint32; `groups` says how many groups each has.

    `gold` says how many records of each have gold, if some have it and others have not; None: all, none, or not known.
    """

    train: Numbers
    val: Numbers
    test: Numbers
    groups: tuple[int, int, int]
    gold: tuple[int, int, int] | None = None

    def __str__(self) -> str:
        parts = zip(("train", "val", "test"), (self.train, self.val, self.test), self.groups, strict=True)
        known = [""] * 3 if self.gold is None else [f" ({count} with gold)" for count in self.gold]
        return ", ".join(
            f"{name} {len(numbers)} records{gold} in {groups} groups"
            for (name, numbers, groups), gold in zip(parts, known, strict=True)
        )

    def with_train(self, train: Numbers) -> "Splits":
        """Return the splits with other training records, of which it is not counted how many have gold."""
        return replace(self, train=train, gold=None)


def infos_of(source: RecordSource) -> list[RecordInfo]:
    """Return what is known of every record, for the functions that split: never without `gold`."""
    return [info_of(source, index, gold=True) for index in range(len(source))]


def limited(splits: Splits, infos: Sequence[RecordInfo], count: int, more: int = 0) -> Splits:
    """Return the first records of each split, half of them with gold where some are known to have it and some not.

    Args:
        splits: of all records.
        infos: what is known of each record, from `infos_of`.
        count: records of a split, at most.
        more: further records of train, those with gold first.
    """
    return replace(
        splits,
        train=_first(splits.train, infos, count, more),
        val=_first(splits.val, infos, count),
        test=_first(splits.test, infos, count),
        gold=None,
    )


def split_by_fraction(
    infos: Sequence[RecordInfo], *, val: float = 0.1, test: float = 0.1, seed: int = 0, given: bool = True
) -> Splits:
    """Split by groups (a record without one is its own): about `val` and `test` of the records; the rest is train.

    Where some records have gold and others have not, the groups with gold are drawn first, by the same fractions of the
    gold masks: each split has some if there are three such groups or more. Of two, one stays in train.

    Args:
        infos: what is known of each record, from `infos_of`.
        val: fraction of the records, 0 for none.
        test: like `val`.
        seed: of the draw.
        given: keep the splits that records came with. Nothing is added to a split that any record came with; test is
            drawn only from records without a split, val also from those of train.

    Raises:
        DataError: if there are too few groups, or a group came in two splits.
    """
    for name, fraction in (("val", val), ("test", test)):
        if not 0 <= fraction < 1:
            raise ValueError(f"Expected {name} to be a fraction from 0 to below 1 but got {fraction}.")
    groups = _groups(infos)
    labels = [_given_split(infos, members) if given else "" for members in groups.members]
    rng = np.random.default_rng(seed)
    draw_val = val > 0 and "val" not in labels
    if test > 0 and "test" not in labels:
        free = [number for number, label in enumerate(labels) if label == ""]
        kept = [number for number, label in enumerate(labels) if label == "train"]
        for number in _draw_spread(groups, free, kept, test, 1 + draw_val, rng, "test"):
            labels[number] = "test"
    if draw_val:
        free = [number for number, label in enumerate(labels) if label in ("", "train")]
        for number in _draw_spread(groups, free, [], val, 1, rng, "val"):
            labels[number] = "val"
    return _splits(groups, labels)


def split_by_fold(
    infos: Sequence[RecordInfo], *, folds: int = 5, fold: int = 0, val: float = 0.1, seed: int = 0
) -> Splits:
    """Make `folds` parts of about equal size, by groups: part `fold` is test, about `val` of all records are val.

    Every record is in test once when `fold` runs through 0 … folds − 1. Splits that records came with are not used.
    Where some records have gold and others have not, the parts have about equally many gold masks too.

    Args:
        infos: what is known of each record, from `infos_of`.
        folds: how many parts there are.
        fold: the part that is test, from 0.
        val: fraction of all records, 0 for none.
        seed: of the parts and of val.
    """
    if not 0 <= fold < folds:
        raise ValueError(f"Expected a fold from 0 to {folds - 1} but got {fold}.")
    groups = _groups(infos)
    if not 2 <= folds <= len(groups.members):
        raise DataError(f"Expected 2 to {len(groups.members)} folds, at most one a group, but got {folds}.", "split")
    sizes, golds, labels = [0] * folds, [0] * folds, [""] * len(groups.members)
    shuffled = np.random.default_rng(seed).permutation(len(groups.members)).tolist()
    # Those with gold first, and of them the largest, each to the smallest part so far; sorting is stable, so equals
    # stay shuffled.
    for number in sorted(shuffled, key=lambda number: (-groups.golds[number], -groups.sizes[number])):
        counted = groups.golds[number] > 0
        part = min(range(folds), key=lambda part: (golds[part] * counted, sizes[part]))
        sizes[part] += groups.sizes[number]
        golds[part] += groups.golds[number]
        labels[number] = "test" if part == fold else ""
    if val > 0:
        free = [number for number, label in enumerate(labels) if label == ""]
        rng = np.random.default_rng([seed, fold])
        for number in _draw_spread(groups, free, [], val, 1, rng, "val"):
            labels[number] = "val"
    return _splits(groups, labels)


@dataclass(frozen=True, eq=False)
class _Groups:
    """The record numbers of each group, and how many of its records have gold."""

    members: list[list[int]]
    golds: list[int]

    @property
    def sizes(self) -> list[int]:
        return [len(members) for members in self.members]

    @property
    def partial(self) -> bool:
        """Whether some records have gold and others have not."""
        return 0 < sum(self.golds) < sum(self.sizes)


def _groups(infos: Sequence[RecordInfo]) -> _Groups:
    """Return the groups in the order of their names, not of the records."""
    members: dict[tuple[bool, str], list[int]] = {}
    for number, info in enumerate(infos):
        members.setdefault((bool(info.group), info.group or info.id), []).append(number)
    ordered = [members[name] for name in sorted(members)]
    return _Groups(ordered, [sum(bool(infos[number].gold) for number in numbers) for numbers in ordered])


def _given_split(infos: Sequence[RecordInfo], members: Iterable[int]) -> str:
    found = {infos[number].split: infos[number] for number in members if infos[number].split}
    if len(found) > 1:
        (one, first), (other, second) = list(found.items())[:2]
        raise DataError(
            f"Expected each group in one split but group {first.group or first.id!r} is in {one} ({first.id}) and in "
            f"{other} ({second.id}): a leak; correct the manifest's splits, or set given=false to draw new ones.",
            "split",
        )
    return next(iter(found), "")


def _draw_spread(
    groups: _Groups,
    free: list[int],
    kept: list[int],
    fraction: float,
    leave: int,
    rng: np.random.Generator,
    name: str,
) -> list[int]:
    """Draw about `fraction` of all records from the groups `free`, and of the gold masks if only some have them.

    Args:
        groups: all groups.
        free: the numbers of those that may be drawn.
        kept: the numbers of those that stay in train whatever is drawn.
        fraction: of all records.
        leave: how many groups are left at least, those of `kept` among them.
        rng: of the draw.
        name: of the split, for the message.
    """
    sizes, keep = groups.sizes, max(0, leave - len(kept))
    if not groups.partial:
        return _draw(free, sizes, fraction * sum(sizes), keep, rng, name)
    gold = [number for number in free if groups.golds[number]]
    rest = [number for number in free if not groups.golds[number]]
    kept_gold = sum(groups.golds[number] > 0 for number in kept)
    # Of two groups with gold, one is drawn for test and none for val: preferences can be validated on other images.
    keep_gold = max(0, (leave if len(gold) + kept_gold > 2 else 1) - kept_gold)
    drawn: list[int] = []
    if len(gold) > keep_gold:
        drawn = _draw(gold, groups.golds, fraction * sum(groups.golds), keep_gold, rng, name)
    missing = fraction * sum(sizes) - sum(sizes[number] for number in drawn)
    keep = max(0, keep - (len(gold) - len(drawn)))
    if drawn and len(rest) <= keep:
        return drawn
    return drawn + _draw(rest, sizes, missing, keep, rng, name, least=not drawn)


def _draw(
    free: list[int],
    sizes: list[int],
    wanted: float,
    keep: int,
    rng: np.random.Generator,
    name: str,
    least: bool = True,
) -> list[int]:
    """Draw groups of `free`, about `wanted` records in total, and leave at least `keep` groups.

    With `least`, one group is drawn at least.
    """
    most = len(free) - keep
    if most < 1:
        raise DataError(
            f"Expected a group to draw {name} from, and {keep} left, but only {len(free)} are free; "
            f"set {name} to 0, make smaller groups, or set given=false.",
            "split",
        )
    drawn: list[int] = []
    missing = wanted
    for number in rng.permutation(free).tolist():
        if len(drawn) < most and abs(missing - sizes[number]) < abs(missing):
            drawn.append(number)
            missing -= sizes[number]
    return drawn or [min(free, key=lambda number: sizes[number])] * least


def _splits(groups: _Groups, labels: list[str]) -> Splits:
    names = ("train", "val", "test")
    found: dict[str, list[int]] = {name: [] for name in names}
    golds = dict.fromkeys(names, 0)
    for members, count, label in zip(groups.members, groups.golds, labels, strict=True):
        found[label or "train"] += members
        golds[label or "train"] += count
    if not found["train"]:
        raise DataError("Expected records to train on but every one is in val or test.", "split")
    counts = tuple(sum((label or "train") == name for label in labels) for name in names)
    train, val, test = (np.array(sorted(numbers), np.uint32) for numbers in found.values())
    gold = (golds["train"], golds["val"], golds["test"]) if groups.partial else None
    return Splits(train, val, test, (counts[0], counts[1], counts[2]), gold)


def _first(numbers: Numbers, infos: Sequence[RecordInfo], count: int, more: int = 0) -> Numbers:
    gold = np.array([infos[number].gold is True for number in numbers], bool)
    # `more` with gold, then both kinds in turns: 0, 2, 4 … for those with gold, 1, 3, 5 … for the rest.
    order = np.where(gold, 2 * (np.cumsum(gold) - 1 - more), 2 * np.cumsum(~gold) - 1)
    return np.sort(numbers[np.argsort(order)[: count + more]])
