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
    """Record numbers of each split, ascending, uint32; `groups` says how many groups each has."""

    train: Numbers
    val: Numbers
    test: Numbers
    groups: tuple[int, int, int]

    def __str__(self) -> str:
        parts = zip(("train", "val", "test"), (self.train, self.val, self.test), self.groups, strict=True)
        return ", ".join(f"{name} {len(numbers)} records in {groups} groups" for name, numbers, groups in parts)


def infos_of(source: RecordSource) -> list[RecordInfo]:
    """Return what is known of every record, for the functions that split."""
    return [info_of(source, index) for index in range(len(source))]


def limited(splits: Splits, infos: Sequence[RecordInfo], count: int, more: int = 0) -> Splits:
    """Return the first records of each split, half of them with gold where some are known to have it and some not.

    Args:
        splits: of all records.
        infos: what is known of each record, from `infos_of`.
        count: records of a split, at most.
        more: further records of train.
    """
    return replace(
        splits,
        train=_first(splits.train, infos, count + more),
        val=_first(splits.val, infos, count),
        test=_first(splits.test, infos, count),
    )


def split_by_fraction(
    infos: Sequence[RecordInfo], *, val: float = 0.1, test: float = 0.1, seed: int = 0, given: bool = True
) -> Splits:
    """Split by groups (a record without one is its own): about `val` and `test` of the records; the rest is train.

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
    labels = [_given_split(infos, members) if given else "" for members in groups]
    sizes = [len(members) for members in groups]
    rng = np.random.default_rng(seed)
    draw_val = val > 0 and "val" not in labels
    if test > 0 and "test" not in labels:
        free = [number for number, label in enumerate(labels) if label == ""]
        keep = max(0, 1 + draw_val - labels.count("train"))
        for number in _draw(free, sizes, test * len(infos), keep, rng, "test"):
            labels[number] = "test"
    if draw_val:
        free = [number for number, label in enumerate(labels) if label in ("", "train")]
        for number in _draw(free, sizes, val * len(infos), 1, rng, "val"):
            labels[number] = "val"
    return _splits(groups, labels)


def split_by_fold(
    infos: Sequence[RecordInfo], *, folds: int = 5, fold: int = 0, val: float = 0.1, seed: int = 0
) -> Splits:
    """Make `folds` parts of about equal size, by groups: part `fold` is test, about `val` of all records are val.

    Every record is in test once when `fold` runs through 0 … folds − 1. Splits that records came with are not used.

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
    if not 2 <= folds <= len(groups):
        raise DataError(f"Expected 2 to {len(groups)} folds, at most one a group, but got {folds}.", "split")
    part_sizes, labels = [0] * folds, [""] * len(groups)
    shuffled = np.random.default_rng(seed).permutation(len(groups)).tolist()
    # The largest first, each to the smallest part so far; sorting is stable, so equals stay shuffled.
    for number in sorted(shuffled, key=lambda number: -len(groups[number])):
        part = part_sizes.index(min(part_sizes))
        part_sizes[part] += len(groups[number])
        labels[number] = "test" if part == fold else ""
    if val > 0:
        free = [number for number, label in enumerate(labels) if label == ""]
        rng = np.random.default_rng([seed, fold])
        for number in _draw(free, [len(members) for members in groups], val * len(infos), 1, rng, "val"):
            labels[number] = "val"
    return _splits(groups, labels)


def _groups(infos: Sequence[RecordInfo]) -> list[list[int]]:
    """Return the record numbers of each group, in the order of the groups' names, not of the records."""
    members: dict[tuple[bool, str], list[int]] = {}
    for number, info in enumerate(infos):
        members.setdefault((bool(info.group), info.group or info.id), []).append(number)
    return [members[name] for name in sorted(members)]


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


def _draw(
    free: list[int], sizes: list[int], wanted: float, keep: int, rng: np.random.Generator, name: str
) -> list[int]:
    """Draw at least one of the groups `free`, about `wanted` records in total, and leave at least `keep` groups."""
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
    return drawn or [min(free, key=lambda number: sizes[number])]


def _splits(groups: list[list[int]], labels: list[str]) -> Splits:
    found: dict[str, list[int]] = {"train": [], "val": [], "test": []}
    for members, label in zip(groups, labels, strict=True):
        found[label or "train"] += members
    if not found["train"]:
        raise DataError("Expected records to train on but every one is in val or test.", "split")
    counts = tuple(sum((label or "train") == name for label in labels) for name in found)
    train, val, test = (np.array(sorted(numbers), np.uint32) for numbers in found.values())
    return Splits(train, val, test, (counts[0], counts[1], counts[2]))


def _first(numbers: Numbers, infos: Sequence[RecordInfo], count: int) -> Numbers:
    gold = np.array([getattr(infos[number], "gold", None) is True for number in numbers], bool)
    # Both kinds in turns: 0, 2, 4 … for those with gold, 1, 3, 5 … for the rest.
    order = np.where(gold, 2 * np.cumsum(gold) - 2, 2 * np.cumsum(~gold) - 1)
    return np.sort(numbers[np.argsort(order)[:count]])
