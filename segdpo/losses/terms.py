"""The contract of a term: what it may ask for, what it must return, where it fails; and what a loss returns."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial

import torch
from torch import Tensor

from segdpo.scores import PairScores, Score

Term = Callable[..., Tensor]
GIVEN = ("policy", "reference", "drift")
"""What PreferenceLoss gives to a term that names it; every other argument is a hyperparameter."""


@dataclass(frozen=True)
class LossTerms:
    """`total` is what to minimise; `parts` holds every term's unweighted values, one a pair or list of masks."""

    total: Tensor
    parts: dict[str, Tensor]


@lru_cache(maxsize=256)
def asks_for(term: Term) -> frozenset[str]:
    """Return the names of the arguments that the term still takes."""
    bound = set(term.keywords) if isinstance(term, partial) else set()
    return frozenset(set(inspect.signature(term).parameters) - bound)


def check_term(name: str, term: Term, score: Score) -> None:
    """Refuse a term with misspelt or missing hyperparameters, or one that is not defined on its score."""
    if not callable(term):
        raise TypeError(f"Expected the term {name!r} to be a function but got {term!r}.")
    function, keywords = (term.func, term.keywords) if isinstance(term, partial) else (term, {})
    parameters = inspect.signature(function).parameters
    own = [key for key in parameters if key not in GIVEN]
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    for key in keywords:
        if key not in parameters and not takes_any:
            raise TypeError(f"{_title(function)} has no hyperparameter {key!r}; it takes {', '.join(own) or 'none'}.")
    for key in own:
        if parameters[key].default is inspect.Parameter.empty and key not in keywords and not takes_any:
            raise TypeError(
                f"{_title(function)} needs the hyperparameter {key!r}: partial({_title(function)}, {key}=…)."
            )
    _check_requirements(_title(function), getattr(function, "requires", {}), score)


def dry_run(name: str, term: Term) -> None:
    """Call the term once on two even pairs, so that a value out of range or a mean too early is found at once."""
    with torch.no_grad():
        zeros = torch.full((2,), -1.0)
        even = PairScores(chosen=zeros, rejected=zeros)
        given = {"policy": even, "reference": even, "drift": torch.zeros(2)}
        check_result(name, term(**{key: given[key] for key in asks_for(term) & set(GIVEN)}), even)


def check_result(name: str, values: Tensor, policy: PairScores) -> None:
    """Refuse a term that returned anything but one finite value a pair."""
    pairs = tuple(policy.margin.shape)
    if not isinstance(values, Tensor) or tuple(values.shape) != pairs:
        got = tuple(values.shape) if isinstance(values, Tensor) else values
        raise ValueError(
            f"Expected the term {name!r} to return one value a pair, shape {pairs}, but got {got}; "
            "leave weights and the mean to PreferenceLoss."
        )
    # Looking at values on a GPU would wait for it; there a NaN travels on into the total, where it shows.
    if values.device.type == "cpu" and not torch.compiler.is_compiling() and not torch.isfinite(values).all():
        wrong = (~torch.isfinite(values)).nonzero().flatten().tolist()
        raise ValueError(
            f"Expected finite values from the term {name!r} but pair {wrong[0]} gave {values[wrong[0]].item()} "
            f"({len(wrong)} of {len(values)} pairs); its scores are too large or NaN: "
            "lower the learning rate, or look at that pair."
        )


def _check_requirements(title: str, requirements: dict[str, tuple[str, ...]], score: Score) -> None:
    for field, allowed in requirements.items():
        value = getattr(score, field)
        if value not in allowed:
            raise ValueError(
                f"{title} is defined on scores with {field} {' or '.join(allowed)} but its score has "
                f"{field}={value}; give it score=Score({field}={allowed[0]!r})."
            )


def _title(function: Term) -> str:
    return getattr(function, "__name__", repr(function))
