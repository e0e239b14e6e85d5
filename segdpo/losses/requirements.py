"""What a term demands of the score it reads, written beside the term and checked when a loss is built."""

from collections.abc import Callable
from typing import Any, TypeVar

Term = TypeVar("Term", bound=Callable[..., Any])


def requires(**allowed: tuple[str, ...]) -> Callable[[Term], Term]:
    """Mark a term as defined only on some scores: `@requires(reduction=("mean",))`."""

    def mark(term: Term) -> Term:
        term.requires = allowed  # type: ignore[attr-defined]
        return term

    return mark
