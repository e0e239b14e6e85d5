"""Figures: rounds of a measurement beside rounds of its baseline, and how they are said."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import median


@dataclass
class Figure:
    """One line of the report: what was measured, rounds of it and of its baseline, in `unit`."""

    name: str
    unit: str
    baseline_name: str
    values: list[float] = field(default_factory=list)
    baseline: list[float] = field(default_factory=list)

    def row(self) -> tuple[str, ...]:
        """Return the line as cells; the ratio is the median over rounds of value / baseline."""
        ratios = [value / other for value, other in zip(self.values, self.baseline, strict=True)]
        return (
            f"{self.name} ({self.unit})",
            saying(self.values),
            self.baseline_name,
            saying(self.baseline),
            saying(ratios),
        )


def seconds(work: Callable[[], object]) -> float:
    """Return how long `work` takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def saying(values: list[float]) -> str:
    """Return the median with the lowest and the highest value."""
    if len(values) == 1:
        return f"{values[0]:.3g}"
    return f"{median(values):.3g} ({min(values):.3g}–{max(values):.3g})"
