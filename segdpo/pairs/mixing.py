"""Several sources of masks as one."""

from collections.abc import Mapping

import numpy as np

from segdpo.checks import check_range
from segdpo.pairs.candidates_value import Candidates, MaskSource
from segdpo.pairs.record import Record


def mixture(
    record: Record,
    rng: np.random.Generator,
    *,
    sources: Mapping[str, MaskSource],
    count: int,
    weights: Mapping[str, float] | None = None,
) -> Candidates:
    """Draw `count` masks of an image from several sources, all if there are fewer.

    The first mask drawn is of a source with probability weight / sum of weights (left out: 1 each), whatever number of
    masks it offers; then without putting back. A source of weight 0 is not called. Masks are named "source-variant",
    the source by its name here.
    """
    shares = _shares(sources, weights)
    # A generator each: what one source draws is not changed by another's being there.
    generators = dict(zip(sources, rng.spawn(len(sources)), strict=True))
    offered = {name: sources[name](record, generators[name]) for name, share in shares.items() if share > 0}
    offered = {name: candidates for name, candidates in offered.items() if len(candidates.masks)}
    if not offered:
        return Candidates(np.zeros((0, *record.image.shape[:2]), np.uint8), ())
    odds = np.concatenate([np.full(len(c.masks), shares[name] / len(c.masks)) for name, c in offered.items()])
    drawn = np.sort(rng.choice(len(odds), min(count, len(odds)), replace=False, p=odds / odds.sum()))
    names = [_named(source, name) for source, candidates in offered.items() for name in candidates.names]
    masks = np.concatenate([candidates.masks for candidates in offered.values()])
    return Candidates(masks[drawn], tuple(names[number] for number in drawn))


def _shares(sources: Mapping[str, MaskSource], weights: Mapping[str, float] | None) -> dict[str, float]:
    if weights is None:
        return dict.fromkeys(sources, 1.0)
    if set(weights) != set(sources):
        raise ValueError(
            f"Expected a weight for each source ({', '.join(sources)}) but got weights for {', '.join(weights)}."
        )
    for name, weight in weights.items():
        check_range(f"weights.{name}", weight, least=0)
    return {name: float(weights[name]) for name in sources}


def _named(source: str, name: str) -> str:
    _, dash, variant = name.partition("-")
    return f"{source}-{variant if dash else name}"
