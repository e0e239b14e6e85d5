"""Counts of outcomes, by kind of file, as Markdown."""

from collections import Counter
from collections.abc import Sequence

from fuzzing.cases import FAILURES, OUTCOMES, Outcome


class Counts:
    """How often each outcome was seen; failures and tracebacks keep where they were, and the first case of each."""

    def __init__(self, kinds: Sequence[str]) -> None:
        self._kinds = kinds
        self._counts: Counter[tuple[str, str]] = Counter()
        self._places: Counter[tuple[str, str, str]] = Counter()
        self._first: dict[tuple[str, str, str], Outcome] = {}

    def add(self, kind: str, outcome: Outcome) -> None:
        """Count a case."""
        self._counts[kind, outcome.outcome] += 1
        if outcome.outcome in (*FAILURES, "traceback"):
            key = kind, outcome.outcome, outcome.where
            self._places[key] += 1
            first = self._first.setdefault(key, outcome)
            if outcome.number < first.number:
                self._first[key] = outcome

    def total(self, outcome: str) -> int:
        """Return how often an outcome was seen in all kinds."""
        return sum(self._counts[kind, outcome] for kind in self._kinds)

    def files(self, kind: str) -> int:
        """Return how many files of a kind were opened."""
        return sum(self._counts[kind, outcome] for outcome in OUTCOMES)

    def markdown(self, seed: int) -> str:
        """Return the table, and under it the places of failures and tracebacks."""
        lines = [
            f"| kind (seed {seed}) | files | {' | '.join(OUTCOMES)} |",
            "|---|--:|" + "--:|" * len(OUTCOMES),
            *(self._row(kind, [self._counts[kind, outcome] for outcome in OUTCOMES]) for kind in self._kinds),
            self._row("all", [self.total(outcome) for outcome in OUTCOMES]),
        ]
        for (kind, outcome, where), count in sorted(
            self._places.items(), key=lambda item: (_rank(item[0][1]), -item[1])
        ):
            first = self._first[kind, outcome, where]
            said = f": {first.detail[:160]}" if first.detail else ""
            lines.append(f"- {outcome}: {count} × {where} (--case {kind}:{first.number}){said}")
        return "\n".join(lines)

    @staticmethod
    def _row(name: str, numbers: Sequence[int]) -> str:
        return f"| {name} | {sum(numbers)} | {' | '.join(map(str, numbers))} |"


def _rank(outcome: str) -> int:
    return OUTCOMES.index(outcome)
