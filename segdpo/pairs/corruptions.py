"""Corruptions of a good mask as a source of rejected masks: ten kinds of fault, severity drawn per mask."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from segdpo.pairs.candidates_value import Candidates
from segdpo.pairs.corrupt_contour import grow, jagged_contour, shift, shrink, smoothed_contour
from segdpo.pairs.corrupt_parts import class_swap, holes, lost_component, merged_component, spurious_blob
from segdpo.pairs.record import Mask, Record
from segdpo.pairs.starting_mask import starting_mask

Corruption = Callable[[Mask, float, np.random.Generator], Mask]
"""Takes `(mask, severity, rng)`, returns another mask of the same shape; must not change the one it is given."""

KINDS: Mapping[str, Corruption] = {
    "grow": grow,
    "shrink": shrink,
    "shift": shift,
    "holes": holes,
    "lost_component": lost_component,
    "merged_component": merged_component,
    "jagged_contour": jagged_contour,
    "smoothed_contour": smoothed_contour,
    "class_swap": class_swap,
    "spurious_blob": spurious_blob,
}


def corrupt(
    record: Record,
    rng: np.random.Generator,
    count: int = 4,
    kinds: Mapping[str, Corruption] | Sequence[str] = KINDS,
    severity: tuple[float, float] = (0.1, 1.0),
    start: str = "gold",
    with_start: bool = False,
) -> Candidates:
    """Return `count` corrupted copies of the record's gold (or of the mask named `start`): a source of masks.

    `kinds` picks from `KINDS` by name, or maps names to functions `(mask, severity, rng) -> mask` of your own. Kinds
    are drawn without repetition while they last; a kind that cannot change this mask (no second object to merge
    with) gives way to the next. `with_start` puts the good mask itself first, for pairs "good over corrupted".
    Names are kind, number and severity in percent: `grow-0_043`.
    """
    low, high = severity
    if count < 1 or not 0 < low <= high <= 1:
        raise ValueError(
            f"Expected count ≥ 1 and severity (low, high) with 0 < low ≤ high ≤ 1 but got {count} and {severity}."
        )
    chosen = _named(kinds)
    mask = starting_mask(record, start)
    masks, names = ([mask], ["start"]) if with_start else ([], [])
    queue: list[str] = []
    for k in range(count):
        amount = float(rng.uniform(low, high))
        kind, corrupted = _corrupt_once(record.id, mask, amount, chosen, queue, rng)
        masks.append(corrupted)
        names.append(f"{kind}-{k}_{round(100 * amount):03d}")
    return Candidates(np.stack(masks), tuple(names))


def _corrupt_once(
    record_id: str,
    mask: Mask,
    severity: float,
    kinds: Mapping[str, Corruption],
    queue: list[str],
    rng: np.random.Generator,
) -> tuple[str, Mask]:
    """Take kinds from the queue, refilled when it runs out, until one changes the mask."""
    for _ in range(2 * len(kinds)):
        if not queue:
            queue.extend(str(name) for name in rng.permutation(list(kinds)))
        kind = queue.pop()
        corrupted = kinds[kind](mask, severity, rng)
        if not np.array_equal(corrupted, mask):
            return kind, corrupted
    raise ValueError(
        f"Expected a mask in record {record_id!r} that {', '.join(kinds)} can change, but none of them does "
        "(an empty mask, or one that is ignored everywhere); add 'spurious_blob' to kinds, or leave the record out."
    )


def _named(kinds: Mapping[str, Corruption] | Sequence[str]) -> Mapping[str, Corruption]:
    if isinstance(kinds, Mapping):
        chosen = dict(kinds)
    else:
        unknown = [name for name in kinds if name not in KINDS]
        if unknown:
            raise ValueError(f"Expected kinds of {', '.join(KINDS)} but got {', '.join(map(repr, unknown))}.")
        chosen = {name: KINDS[name] for name in kinds}
    if not chosen:
        raise ValueError("Expected at least one kind of corruption but got none.")
    return chosen
