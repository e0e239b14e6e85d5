"""Rows of the table: samples of every side, the ratio that counts, its target, and whether it is met."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

SIDES = ("floor", "fair baseline", "naive", "ours")
Samples = Mapping[str, Sequence[float]]


@dataclass(frozen=True)
class Target:
    """The target of the median of the ratios."""

    limit: float
    at_least: bool = False

    def is_met(self, value: float) -> bool:
        """Return whether the value is on the right side of the limit."""
        return value >= self.limit if self.at_least else value <= self.limit

    def __str__(self) -> str:
        return f"{'≥' if self.at_least else '≤'} {self.limit:g}"


def at_most(limit: float) -> Target:
    """Return the target that the ratio is no more than that."""
    return Target(limit)


def at_least(limit: float) -> Target:
    """Return the target that the ratio is no less than that."""
    return Target(limit, at_least=True)


@dataclass(frozen=True)
class Row:
    """One line: `sides` holds the samples of each side, round by round; `over` the two whose ratio counts.

    With one name in `over`, what counts is that side itself (an error, a count, a slope); with none, nothing was
    measured, and `note` says why. `failed` is what went wrong. `curve` holds samples by size, where cost is measured
    against a size; `against` names both axes.
    """

    id: str
    what: str
    unit: str = ""
    sides: Samples = field(default_factory=dict)
    over: tuple[str, ...] = ("ours", "fair baseline")
    target: Target | None = None
    note: str = ""
    failed: str = ""
    against: str = ""
    curve: Mapping[int, Sequence[float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse a side that the table has no column for, and a ratio of what was not measured."""
        unknown = set(self.sides) - set(SIDES)
        missing = set(self.over) - set(self.sides)
        if not self.failed and (unknown or missing):
            raise ValueError(f"Expected sides among {SIDES} with {self.over} but got {tuple(self.sides)}.")

    @property
    def ratios(self) -> list[float]:
        """The ratio of every round."""
        if self.failed or not self.over:
            return []
        first, *second = (self.sides[name] for name in self.over)
        if not second:
            return [float(value) for value in first]
        return [value / other for value, other in zip(first, second[0], strict=True)]

    @property
    def met(self) -> bool | None:
        """Whether the target is met; None without a target, False for what failed."""
        if self.failed:
            return False
        return None if self.target is None else self.target.is_met(median(self.ratios))

    def cells(self) -> tuple[str, ...]:
        """Return the line as the table shows it."""
        if self.failed or not self.over:
            said = ("failed", str(self.target or ""), "not met") if self.failed else ("not measured", "", "")
            return (self.id, self.what, "", "", "", "", *said)
        middles = {side: number(median(samples)) for side, samples in self.sides.items()}
        sides = [f"{middles[side]} {self.unit}".strip() if side in middles else "" for side in SIDES]
        met = {True: "met", False: "not met", None: ""}[self.met]
        return (self.id, self.what, *sides, saying(self.ratios), str(self.target or ""), met)

    def as_json(self) -> dict[str, Any]:
        """Return everything, every sample included."""
        ratios = self.ratios
        return {
            "id": self.id,
            "what": self.what,
            "unit": self.unit,
            "sides": {name: list(map(float, samples)) for name, samples in self.sides.items()},
            "ratio": {"of": list(self.over), "samples": ratios, "median": median(ratios) if ratios else None},
            "target": None if self.target is None else str(self.target),
            "met": self.met,
            "note": self.note,
            "failed": self.failed or None,
        } | ({"against": self.against, "curve": self.curve} if self.curve else {})


def saying(values: Sequence[float]) -> str:
    """Return the median with the lowest and the highest value."""
    if len(values) == 1:
        return number(values[0])
    return f"{number(median(values))} ({number(min(values))}–{number(max(values))})"


def number(value: float) -> str:
    """Return three digits, or all digits before the point."""
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"
