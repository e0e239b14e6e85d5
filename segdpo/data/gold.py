"""Which records have gold, and which functions of records need it."""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from functools import partial
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from segdpo.data.record import RecordSource, info_of

F = TypeVar("F", bound=Callable[..., Any])


def with_gold(source: RecordSource, numbers: Sequence[int] | NDArray[np.uint32]) -> NDArray[np.uint32]:
    """Return those of the records that have a gold mask."""
    return np.array([number for number in numbers if info_of(source, int(number), gold=True).gold], np.uint32)


def reads_gold(function: F) -> F:
    """Mark a function of records (a judge, a reward) as one that needs their gold masks: see `needs_gold`."""
    function.needs_gold = True  # type: ignore[attr-defined]
    return function


def needs_gold(function: Any) -> bool:
    """Say whether a function of records (a judge, a reward, a source of masks) needs their gold masks.

    It does if it was marked by `reads_gold`, if it starts from gold (`start="gold"`), or if a function that was bound
    to it does: the judge of a noisy one, the sources of a mixture, the parts of a sum.

    >>> from functools import partial
    >>> needs_gold(partial(sorted, key=reads_gold(lambda record: record.gold)))
    True
    """
    marked = getattr(getattr(function, "func", function), "needs_gold", False) is True
    return marked or _starts_from_gold(function) or any(map(needs_gold, _parts(function)))


def _starts_from_gold(function: Any) -> bool:
    try:
        start = inspect.signature(function).parameters.get("start")
    except (ValueError, TypeError):  # no function, or one written in C
        return False
    return start is not None and start.default == "gold"


def _parts(value: Any) -> Iterator[Any]:
    """Yield what is bound to a partial, and the values of mappings, lists and dataclasses."""
    if isinstance(value, partial):
        yield from (*value.args, *value.keywords.values())
    elif isinstance(value, Mapping):
        yield from value.values()
    elif isinstance(value, list | tuple):
        yield from value
    elif is_dataclass(value) and not isinstance(value, type):
        yield from (getattr(value, field.name) for field in fields(value))
