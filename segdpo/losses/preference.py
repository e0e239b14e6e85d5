"""`PreferenceLoss`: an objective and its anchors, as one loss."""

import inspect
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import lru_cache, partial

import torch
from torch import Tensor

from segdpo.checks import check_range, check_same_shape
from segdpo.kernels import PairIndex
from segdpo.scores import PairScores, Score, score_drift, score_pairs_by

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
    for option, allowed in requirements.items():
        value = getattr(score, option)
        if value not in allowed:
            raise ValueError(
                f"{title} is defined on scores with {option} {' or '.join(allowed)} but its score has "
                f"{option}={value}; give it score=Score({option}={allowed[0]!r})."
            )


def _title(function: Term) -> str:
    return getattr(function, "__name__", repr(function))


@dataclass(frozen=True)
class ChosenReaders:
    """Scores whose s⁺ or s⁻ is read: under the policy by a term that is optimised, and under the reference by any."""

    policy: frozenset[Score]
    reference: frozenset[Score]


def chosen_readers(terms: Mapping[str, tuple[Term, Score]], watched: Collection[str]) -> ChosenReaders:
    """Call each term on two even pairs that note who reads them; `watched` are the terms of weight 0.

    A watched term may compute the policy's s⁺ when it asks, without a gradient and so without much memory.
    """
    policy: set[Score] = set()
    reference: set[Score] = set()
    with torch.no_grad():
        for name, (term, score) in terms.items():
            given = {"policy": _spy(set() if name in watched else policy, score), "reference": _spy(reference, score)}
            asked = asks_for(term)
            term(**{key: value for key, value in (given | {"drift": torch.zeros(2)}).items() if key in asked})
    return ChosenReaders(frozenset(policy), frozenset(reference))


def _spy(noted: set[Score], score: Score) -> PairScores:
    def chosen() -> Tensor:
        noted.add(score)
        return torch.full((2,), -1.0)

    return PairScores(chosen=chosen, margin=torch.zeros(2))


Reference = Tensor | PairScores | Mapping[Score, PairScores]


@dataclass(frozen=True)
class Anchor:
    """A term beside the objective. Weight 0 = watched in `LossTerms.parts`, not optimised.

    `score` is what this anchor reads when the loss scores logits itself; left out: the score of the loss.
    """

    weight: float
    term: Term
    score: Score | None = None


@dataclass(frozen=True)
class PreferenceLoss:
    """total = mean over pairs of objective + Σ weight · anchor.

    >>> from functools import partial
    >>> from segdpo import Anchor, anchors, objectives
    >>> loss = PreferenceLoss(
    ...     partial(objectives.dpo, beta=1.0),
    ...     anchors={"hinge": Anchor(weight=0.5, term=partial(anchors.hinge, tau=1.0))},
    ... )
    >>> scores = PairScores(chosen=torch.tensor([-1.0]), rejected=torch.tensor([-3.0]))
    >>> loss(scores, scores).total
    tensor(1.6931)

    `reads_chosen` says for which scores some term reads s⁺ or s⁻; where none does, margins are all that is computed.
    """

    objective: Term
    anchors: Mapping[str, Anchor] = field(default_factory=dict)
    score: Score = field(default_factory=Score)
    reads_chosen: ChosenReaders = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Find every mistake that can be found before the first step."""
        if "objective" in self.anchors:
            raise ValueError('Expected anchors under names of their own but one is called "objective".')
        for name, anchor in self.anchors.items():
            if not isinstance(anchor, Anchor):
                raise TypeError(
                    f"Expected anchor {name!r} to be Anchor(weight=…, term=…) but got {anchor!r}; "
                    "in yaml, the loss needs the line `_convert_: all`, or Hydra takes its anchors apart."
                )
            check_range("weight", anchor.weight)
        for name, (term, score) in self._scored_terms().items():
            check_term(name, term, score)
            dry_run(name, term)
        watched = {name for name, anchor in self.anchors.items() if anchor.weight == 0}
        object.__setattr__(self, "reads_chosen", chosen_readers(self._scored_terms(), watched))

    @property
    def needs_reference(self) -> bool:
        """Whether any term asks for the reference; if none does, none has to exist."""
        return any(asks_for(term) & {"reference", "drift"} for term, _ in self._scored_terms().values())

    @property
    def needs_drift(self) -> bool:
        """Whether any term asks for `drift`, which takes the reference's logits rather than its scores."""
        return any("drift" in asks_for(term) for term, _ in self._scored_terms().values())

    @property
    def scores(self) -> tuple[Score, ...]:
        """The distinct scores of all terms, each computed once a step."""
        return tuple(dict.fromkeys(score for _, score in self._scored_terms().values()))

    def __call__(
        self,
        policy: PairScores | Mapping[Score, PairScores],
        reference: PairScores | Mapping[Score, PairScores] | None = None,
        *,
        weight: Tensor | None = None,
        drift: Tensor | None = None,
    ) -> LossTerms:
        """Combine scores that are already there: one for each of `scores`, or one that every term reads.

        `weight` [pairs] weighs pairs: 2 is the pair twice, 0 the pair left out. `drift` comes from `score_drift`.
        """
        policies = dict.fromkeys(self.scores, policy) if isinstance(policy, PairScores) else policy
        references = dict.fromkeys(self.scores, reference) if isinstance(reference, PairScores) else reference
        return self._combine(policies, references, weight, drift)

    def on_logits(
        self,
        policy_logits: Tensor,
        reference: Reference | None,
        chosen: Tensor,
        rejected: Tensor,
        *,
        valid: Tensor | None = None,
        image_index: Tensor | None = None,
        region_mask: Tensor | None = None,
        weight: Tensor | None = None,
        index: PairIndex | None = None,
        backend: str = "auto",
        in_place: bool = False,
    ) -> LossTerms:
        """Score the pairs from logits, all distinct scores in one pass, and combine.

        `reference` is the reference's logits, or scores cached earlier: one `PairScores`, or one for each of
        `scores`. None for losses that need none. `index` comes from `pair_index`; left out: found on the spot.
        With `in_place` the backward writes the gradient over the policy's logits, which saves a tensor of their size;
        nobody may read them afterwards.
        """
        measure = partial(
            self.score_logits,
            chosen=chosen,
            rejected=rejected,
            valid=valid,
            image_index=image_index,
            region_mask=region_mask,
            index=index,
            backend=backend,
        )
        references: Mapping[Score, PairScores] | None
        drift = None
        if isinstance(reference, PairScores):
            if len(self.scores) > 1:
                raise ValueError(
                    f"Expected reference scores for each of the {len(self.scores)} scores that this loss reads but got "
                    "one PairScores; pass logits, or {score: PairScores} as score_logits returns it."
                )
            references = dict.fromkeys(self.scores, reference)
        elif isinstance(reference, Tensor) and self.needs_reference:
            with torch.no_grad():
                references = measure(reference)
            if self.needs_drift:
                drift = score_drift(
                    policy_logits, reference.detach(), chosen, rejected, valid=valid, image_index=image_index
                )
        else:
            references = None if isinstance(reference, Tensor) else reference
        return self._combine(measure(policy_logits, in_place=in_place), references, weight, drift)

    def score_logits(
        self,
        logits: Tensor,
        chosen: Tensor,
        rejected: Tensor,
        *,
        valid: Tensor | None = None,
        image_index: Tensor | None = None,
        region_mask: Tensor | None = None,
        index: PairIndex | None = None,
        backend: str = "auto",
        in_place: bool = False,
    ) -> dict[Score, PairScores]:
        """Return every distinct score that the terms read; what a cache of reference scores has to keep."""
        return score_pairs_by(
            self.scores,
            logits,
            chosen,
            rejected,
            wants_chosen=self.reads_chosen.policy if torch.is_grad_enabled() else self.reads_chosen.reference,
            valid=valid,
            image_index=image_index,
            region_mask=region_mask,
            index=index,
            backend=backend,
            in_place=in_place,
        )

    def _scored_terms(self) -> dict[str, tuple[Term, Score]]:
        terms = {"objective": (self.objective, self.score)}
        for name, anchor in self.anchors.items():
            terms[name] = (anchor.term, anchor.score or self.score)
        return terms

    def _combine(
        self,
        policies: Mapping[Score, PairScores],
        references: Mapping[Score, PairScores] | None,
        weight: Tensor | None,
        drift: Tensor | None,
    ) -> LossTerms:
        parts: dict[str, Tensor] = {}
        optimised: list[Tensor] = []
        weights = {"objective": 1.0} | {name: anchor.weight for name, anchor in self.anchors.items()}
        for name, (term, score) in self._scored_terms().items():
            given = _give(name, asks_for(term), policies[score], (references or {}).get(score), drift)
            with torch.set_grad_enabled(torch.is_grad_enabled() and weights[name] != 0):
                parts[name] = term(**given)
            check_result(name, parts[name], policies[score])
            if weights[name] != 0:
                optimised.append(weights[name] * parts[name])
        return LossTerms(total=_mean(torch.stack(optimised).sum(0), weight), parts=parts)


def _give(
    name: str,
    asked: frozenset[str],
    policy: PairScores,
    reference: PairScores | None,
    drift: Tensor | None,
) -> dict[str, PairScores | Tensor]:
    """Pick what the term asks for by name; say what is missing."""
    given: dict[str, PairScores | Tensor] = {}
    if "policy" in asked:
        given["policy"] = policy
    if "reference" in asked:
        if reference is None:
            raise ValueError(
                f"Expected reference scores for the term {name!r} but got none; pass the frozen network's scores or "
                "logits, or choose a loss that needs no reference (cpo, simpo, orpo, arpo, sft)."
            )
        check_same_shape("the reference's scores", reference.margin, "the policy's", policy.margin)
        given["reference"] = reference
    if "drift" in asked:
        if drift is None:
            raise ValueError(
                f"Expected drift for the term {name!r} but got none: it needs the reference's logits, not only its "
                "scores; pass logits to on_logits, or drift=score_drift(…)."
            )
        given["drift"] = drift
    return given


def _mean(values: Tensor, weight: Tensor | None) -> Tensor:
    if weight is None:
        return values.mean()
    check_same_shape("weight", weight, "the pairs", values)
    looks = weight.device.type == "cpu" and not torch.compiler.is_compiling()
    if looks and not (torch.isfinite(weight) & (weight >= 0)).all():
        raise ValueError(f"Expected finite pair weights of at least 0 but got {weight.tolist()}.")
    # Divided by the weights' own sum: weight 2 is the pair twice, weight 0 the pair left out.
    weight = weight.to(values.dtype)
    return (weight * values).sum() / weight.sum().clamp(min=torch.finfo(values.dtype).tiny)
