"""`PreferenceLoss`: an objective and its anchors as one loss. The terms are plain functions of `PairScores`."""

import inspect
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import cast

import torch
from torch import Tensor

from segdpo.checks import check_range, check_same_shape
from segdpo.kernels import Backend, PairIndex
from segdpo.scores import ModelOutput, Pairs, PairScores, Score, kl_of_pairs, logits_in, score_pairs_by

Term = Callable[..., Tensor]
Reference = ModelOutput | PairScores | Mapping[Score, PairScores]

# Arguments of terms that PreferenceLoss passes by name; every other argument is a hyperparameter.
GIVEN = ("policy", "reference", "kl_to_reference", "drift")


@dataclass(frozen=True)
class LossTerms:
    """A loss and its parts.

    Attributes:
        total: the scalar to minimise, a mean over pairs.
        parts: the unweighted values of every term, one for each pair or ranking.
        weight: the sum of the pairs' weights (without weights, the number of pairs), by which `total` is divided.

    >>> terms = LossTerms(total=torch.tensor(0.5), parts={}, weight=torch.tensor(4.0))
    >>> terms.sum
    tensor(2.)
    """

    total: Tensor
    parts: dict[str, Tensor]
    weight: Tensor

    @property
    def sum(self) -> Tensor:
        """The weighted sum over pairs, total · weight: what is added up over batches and processes."""
        return self.total * self.weight


@dataclass(frozen=True)
class Anchor:
    """A term beside the objective.

    Args:
        weight: α; 0 = the term is computed for `LossTerms.parts` but not optimised.
        term: a function of `policy`, `reference` or `kl_to_reference`, with its hyperparameters bound.
        score: what the term reads when the loss scores logits itself; None: the score of the loss.
    """

    weight: float
    term: Term
    score: Score | None = None


@dataclass(frozen=True)
class ChosenReaders:
    """The scores of which s⁺ or s⁻ is read, so that it should be computed in the same pass as the margin.

    Attributes:
        policy: under the policy, by a term that is optimised. A term of weight 0 computes s⁺ without a gradient.
        reference: under the reference, by any term.
    """

    policy: frozenset[Score]
    reference: frozenset[Score]


@dataclass(frozen=True)
class PreferenceLoss:
    """total = mean over pairs of objective + Σ weight · anchor.

    A term is a function that takes by name what it needs: `policy` and `reference` (`PairScores`), and
    `kl_to_reference` (one number for each pair). It returns one value for each pair. Its hyperparameters are bound with
    `functools.partial`. Mistakes in terms are found when the loss is built.

    Args:
        objective: the term that compares the masks of a pair.
        anchors: further terms by name.
        score: what the terms read when the loss scores logits itself; an anchor may have its own.

    >>> from functools import partial
    >>> from segdpo import Anchor, anchors, objectives
    >>> loss = PreferenceLoss(
    ...     partial(objectives.dpo, beta=1.0),
    ...     anchors={"hinge": Anchor(weight=0.5, term=partial(anchors.hinge, tau=1.0))},
    ... )
    >>> scores = PairScores(chosen=torch.tensor([-1.0]), rejected=torch.tensor([-3.0]))
    >>> loss(scores, scores).total
    tensor(1.6931)
    """

    objective: Term
    anchors: Mapping[str, Anchor] = field(default_factory=dict)
    score: Score = field(default_factory=Score)
    reads_chosen: ChosenReaders = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Check the terms, and find out which scores they read."""
        if "objective" in self.anchors:
            raise ValueError('Expected anchors under names of their own but one is called "objective".')
        for name, anchor in self.anchors.items():
            if not isinstance(anchor, Anchor):
                raise TypeError(
                    f"Expected anchor {name!r} to be Anchor(weight=…, term=…) but got {anchor!r}; "
                    "in yaml, the loss needs the line `_convert_: all`, so that Hydra builds its anchors."
                )
            check_range("weight", anchor.weight)
        policy: set[Score] = set()
        reference: set[Score] = set()
        for name, (term, score, weight) in self._terms().items():
            _check_term(name, term, score)
            _try_term(name, term, score, policy if weight else set(), reference)
        object.__setattr__(self, "reads_chosen", ChosenReaders(frozenset(policy), frozenset(reference)))

    @property
    def needs_reference(self) -> bool:
        """Whether any term needs the reference."""
        return any(_needs(term) & set(GIVEN[1:]) for term, *_ in self._terms().values())

    @property
    def needs_reference_logits(self) -> bool:
        """Whether any term needs `kl_to_reference`, which takes the reference's logits rather than its scores."""
        return any(_needs(term) & set(GIVEN[2:]) for term, *_ in self._terms().values())

    @property
    def scores(self) -> tuple[Score, ...]:
        """The distinct scores of all terms; each is computed once."""
        return tuple(dict.fromkeys(score for _, score, _ in self._terms().values()))

    def __call__(
        self,
        policy: PairScores | Mapping[Score, PairScores],
        reference: PairScores | Mapping[Score, PairScores] | None = None,
        *,
        weight: Tensor | None = None,
        kl_to_reference: Tensor | None = None,
        drift: Tensor | None = None,
    ) -> LossTerms:
        """Compute the loss from scores.

        Args:
            policy: the policy's scores, for each of `scores`, or one that every term reads.
            reference: the same of the reference; None for losses that need none.
            weight: [pairs]; 2 counts the pair twice, 0 leaves it out. None: 1 for every pair.
            kl_to_reference: [pairs], from `segdpo.kl_to_reference`; only for terms that need it.
            drift: the old name of `kl_to_reference`.
        """
        if drift is not None:
            _warn_of_drift("the keyword drift=")
            kl_to_reference = drift
        policies = dict.fromkeys(self.scores, policy) if isinstance(policy, PairScores) else policy
        references = dict.fromkeys(self.scores, reference) if isinstance(reference, PairScores) else reference
        return self._combine(policies, references or {}, weight, kl_to_reference)

    def on_logits(
        self,
        policy_logits: ModelOutput,
        reference: Reference | None,
        chosen: Tensor,
        rejected: Tensor,
        *,
        valid: Tensor | None = None,
        pair_valid: Tensor | None = None,
        image_index: Tensor | None = None,
        region_mask: Tensor | None = None,
        pair_region: Tensor | None = None,
        weight: Tensor | None = None,
        ignore: int | None = None,
        index: PairIndex | None = None,
        backend: Backend = "auto",
    ) -> LossTerms:
        """Score the pairs from logits, all distinct scores in one pass, and compute the loss.

        A pair of which no pixel counts is left out, with a warning on a CPU; if there is no other, the loss is 0.

        Args:
            policy_logits: [images, 1, *spatial] (sigmoid) or [images, classes, *spatial] (softmax); or what a model
                returns: an object with `.logits`, or a dict with "logits" or "out".
            reference: logits of the same shape, or cached scores: one `PairScores`, or one for each of `scores`. None
                for losses that need none. It gets no gradient.
            chosen: class ids [pairs, *spatial], 255 = ignore.
            rejected: like `chosen`.
            valid: bool [images, *spatial]; False = the pixel does not count, in any pair of the image.
            pair_valid: bool [pairs, *spatial]; False = the pixel does not count in this pair.
            image_index: [pairs], the image of each pair; None: pair i belongs to image i.
            region_mask: bool [images, *spatial]; for `Score(region="given")`.
            pair_region: bool [pairs, *spatial]; as `region_mask`, but one for each pair.
            weight: [pairs]; 2 counts the pair twice, 0 leaves it out. None: 1 for every pair.
            ignore: as for `score_pairs`.
            index: where the masks differ, from `pair_index`; None: computed.
            backend: as for `score_pairs`.
        """
        pairs = Pairs(chosen, rejected, valid, image_index, region_mask, index, pair_valid, pair_region, ignore)
        policy = logits_in(policy_logits, "policy_logits")
        references, kl = self._references(reference, policy, pairs, backend)
        return self._combine(self._score(policy, pairs, backend), references or {}, weight, kl)

    def _references(
        self, reference: Reference | None, policy: Tensor, pairs: Pairs, backend: Backend
    ) -> tuple[Mapping[Score, PairScores] | None, Tensor | None]:
        """Return the reference's scores, and the KL to it if a term needs it."""
        if reference is None or not self.needs_reference:
            return None, None
        if isinstance(reference, PairScores):
            if len(self.scores) > 1:
                raise ValueError(
                    f"Expected reference scores for each of the {len(self.scores)} scores that this loss reads but got "
                    "one PairScores; pass logits, or {score: PairScores} as score_logits returns it."
                )
            return dict.fromkeys(self.scores, reference), None
        if isinstance(reference, Mapping) and any(isinstance(key, Score) for key in reference):
            return cast(Mapping[Score, PairScores], reference), None
        logits = logits_in(cast(ModelOutput, reference), "reference")
        with torch.no_grad():
            scores = self._score(logits, pairs, backend)
        if not self.needs_reference_logits:
            return scores, None
        return scores, kl_of_pairs(policy, logits, pairs)

    def score_logits(
        self,
        logits: ModelOutput,
        chosen: Tensor,
        rejected: Tensor,
        *,
        valid: Tensor | None = None,
        pair_valid: Tensor | None = None,
        image_index: Tensor | None = None,
        region_mask: Tensor | None = None,
        pair_region: Tensor | None = None,
        ignore: int | None = None,
        index: PairIndex | None = None,
        backend: Backend = "auto",
    ) -> dict[Score, PairScores]:
        """Return each of `scores`, such as for a cache of reference scores. The arguments are those of `on_logits`."""
        pairs = Pairs(chosen, rejected, valid, image_index, region_mask, index, pair_valid, pair_region, ignore)
        return self._score(logits_in(logits), pairs, backend)

    def _score(self, logits: Tensor, pairs: Pairs, backend: Backend) -> dict[Score, PairScores]:
        wanted = self.reads_chosen.policy if torch.is_grad_enabled() else self.reads_chosen.reference
        return score_pairs_by(self.scores, logits, pairs, wants_chosen=wanted, backend=backend)

    def _terms(self) -> dict[str, tuple[Term, Score, float]]:
        """Return the terms with their scores and weights."""
        terms = {"objective": (self.objective, self.score, 1.0)}
        for name, anchor in self.anchors.items():
            terms[name] = (anchor.term, anchor.score or self.score, anchor.weight)
        return terms

    def _combine(
        self,
        policies: Mapping[Score, PairScores],
        references: Mapping[Score, PairScores],
        weight: Tensor | None,
        kl: Tensor | None,
    ) -> LossTerms:
        parts: dict[str, Tensor] = {}
        optimised: list[Tensor] = []
        scored = policies[self.score].scored
        read = partial(_without_empty, scored=scored)
        policies = policies if scored is None else {score: scores.map(read) for score, scores in policies.items()}
        references = {score: scores.map(lambda values: read(values.detach())) for score, scores in references.items()}
        for name, (term, score, term_weight) in self._terms().items():
            arguments = _arguments(name, term, policies[score], references.get(score), kl)
            with torch.set_grad_enabled(torch.is_grad_enabled() and term_weight != 0):
                parts[name] = term(**arguments)
            _check_result(name, parts[name], policies[score])
            if term_weight != 0:
                optimised.append(term_weight * parts[name])
        total, whole = weighted_mean(torch.stack(optimised).sum(0), weight, scored)
        return LossTerms(total, parts, whole)


@lru_cache(maxsize=256)
def _needs(term: Term) -> frozenset[str]:
    """Return which of GIVEN the term takes."""
    bound = set(term.keywords) if isinstance(term, partial) else set()
    return frozenset((set(inspect.signature(term).parameters) - bound) & set(GIVEN))


def _arguments(
    name: str, term: Term, policy: PairScores, reference: PairScores | None, kl: Tensor | None
) -> dict[str, PairScores | Tensor]:
    """Return what the term needs by name."""
    needs = _needs(term)
    arguments: dict[str, PairScores | Tensor] = {}
    if "policy" in needs:
        arguments["policy"] = policy
    if "reference" in needs:
        if reference is None:
            raise ValueError(
                f"Expected reference scores for the term {name!r} but got none; pass the frozen network's scores or "
                "logits, or choose a loss that needs no reference (cpo, simpo, orpo, arpo, sft)."
            )
        check_same_shape("the reference's scores", reference.margin, "the policy's", policy.margin)
        arguments["reference"] = reference
    for key in GIVEN[2:]:
        if key in needs:
            if kl is None:
                raise ValueError(
                    f"Expected kl_to_reference for the term {name!r} but got none: it needs the reference's logits, "
                    "not only its scores; pass logits to on_logits, or kl_to_reference=segdpo.kl_to_reference(…)."
                )
            arguments[key] = kl
    return arguments


def _check_term(name: str, term: Term, score: Score) -> None:
    """Raise an error for misspelt or missing hyperparameters, and for a term that is not defined on its score."""
    if not callable(term):
        raise TypeError(f"Expected the term {name!r} to be a function but got {term!r}.")
    function, keywords = (term.func, term.keywords) if isinstance(term, partial) else (term, {})
    title = getattr(function, "__name__", repr(function))
    parameters = inspect.signature(function).parameters
    own = [key for key in parameters if key not in GIVEN]
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    for key in keywords:
        if key not in parameters and not takes_any:
            raise TypeError(f"{title} has no hyperparameter {key!r}; it takes {', '.join(own) or 'none'}.")
    for key in own:
        if parameters[key].default is inspect.Parameter.empty and key not in keywords and not takes_any:
            raise TypeError(f"{title} needs the hyperparameter {key!r}: partial({title}, {key}=…).")
    _check_requirements(title, getattr(function, "requires", {}), score)
    if "drift" in _needs(term):
        _warn_of_drift(f"the argument drift of the term {title}")


def _check_requirements(title: str, requirements: dict[str, tuple[str, ...]], score: Score) -> None:
    for option, allowed in requirements.items():
        value = getattr(score, option)
        if value not in allowed:
            raise ValueError(
                f"{title} is defined on scores with {option} {' or '.join(allowed)} but its score has "
                f"{option}={value}; give it score=Score({option}={allowed[0]!r})."
            )


def _try_term(name: str, term: Term, score: Score, policy: set[Score], reference: set[Score]) -> None:
    """Call the term on two equal pairs: check what it returns, and add `score` to the networks whose s⁺ it reads."""
    with torch.no_grad():
        scores = _recording(policy, score), _recording(reference, score)
        _check_result(name, term(**_arguments(name, term, *scores, torch.zeros(2))), scores[0])


def _recording(readers: set[Score], score: Score) -> PairScores:
    def chosen() -> Tensor:
        readers.add(score)
        return torch.full((2,), -1.0)

    return PairScores(chosen=chosen, margin=torch.zeros(2))


def _check_result(name: str, values: Tensor, policy: PairScores) -> None:
    """Raise an error unless the term returned one finite value for each pair."""
    pairs = tuple(policy.margin.shape)
    if not isinstance(values, Tensor) or tuple(values.shape) != pairs:
        got = tuple(values.shape) if isinstance(values, Tensor) else values
        raise ValueError(
            f"Expected the term {name!r} to return one value a pair, shape {pairs}, but got {got}; "
            "leave weights and the mean to PreferenceLoss."
        )
    # Reading values on a GPU would wait for it; there a NaN shows in the total.
    if values.device.type == "cpu" and not torch.compiler.is_compiling() and not torch.isfinite(values).all():
        wrong = (~torch.isfinite(values)).nonzero().flatten().tolist()
        raise ValueError(
            f"Expected finite values from the term {name!r} but pair {wrong[0]} gave {values[wrong[0]].item()} "
            f"({len(wrong)} of {len(values)} pairs); its scores are too large or NaN: "
            "lower the learning rate, or inspect that pair."
        )


def weighted_mean(
    values: Tensor, weight: Tensor | None, scored: Tensor | None = None, what: str = "the pairs"
) -> tuple[Tensor, Tensor]:
    """Return the weighted mean of values [pairs], and the sum of the weights.

    Args:
        values: [pairs].
        weight: [pairs]; 2 counts the pair twice, 0 leaves it out. None: 1 for every pair.
        scored: [pairs]; False leaves the pair out. None: True for every pair.
        what: the values belong to, for messages.
    """
    if weight is None and scored is None:
        return values.mean(), values.new_full((), len(values))
    if weight is not None:
        check_same_shape("weight", weight, what, values)
        reads = weight.device.type == "cpu" and not torch.compiler.is_compiling()
        if reads and not (torch.isfinite(weight) & (weight >= 0)).all():
            raise ValueError(f"Expected finite pair weights of at least 0 but got {weight.tolist()}.")
    # Divided by the sum of the weights, so that weight 2 counts the pair twice and weight 0 leaves it out.
    weight = torch.ones_like(values) if weight is None else weight.to(values.dtype)
    weight = weight if scored is None else weight * scored
    whole = weight.sum()
    return (weight * values).sum() / whole.clamp(min=torch.finfo(values.dtype).tiny), whole


def _without_empty(values: Tensor, scored: Tensor | None) -> Tensor:
    """Return scores [pairs, …] with −1 for pairs of which no pixel counts: for a score of 0, ORPO is infinite."""
    return values if scored is None else torch.where(scored.view(-1, *[1] * (values.ndim - 1)), values, -1.0)


def _warn_of_drift(what: str) -> None:
    warnings.warn(f"{what} is now called kl_to_reference; rename it.", DeprecationWarning, stacklevel=4)
