"""Two networks held against each other, image by image: what counts where one of them has nothing to measure."""

from collections.abc import Mapping

import numpy as np

from segdpo.metrics.masks import HIGHER_IS_BETTER, MASK_METRICS
from segdpo.story.evaluation_measure import Doubles, Flags, Measured

# What a network deserves that rightly finds nothing.
BEST: Mapping[str, float] = dict.fromkeys(MASK_METRICS, 1.0) | dict.fromkeys(("hd95", "components"), 0.0)
# Those that say which of two masks is better; a count of parts too many or too few does not.
DIRECTED = tuple(name for name in MASK_METRICS if HIGHER_IS_BETTER[name] is not None)


def credited(
    name: str, policy: Doubles, reference: Doubles, *, nothing: Flags, reference_nothing: Flags
) -> tuple[Doubles, Doubles]:
    """Return both networks' values of a metric as they are compared.

    Where there is nothing and a network finds nothing, it has no value of its own (NaN). Beside another that invents an
    object there it was right, and has the best value: or inventing would cost nothing, and mending it earn nothing.

    >>> nothing = np.array([True, True]), np.array([False, True])
    >>> policy, reference = np.array([np.nan, np.nan]), np.array([0.0, np.nan])
    >>> credited("iou", policy, reference, nothing=nothing[0], reference_nothing=nothing[1])
    (array([ 1., nan]), array([ 0., nan]))
    """
    ours = np.where(nothing & ~reference_nothing, BEST[name], policy)
    theirs = np.where(reference_nothing & ~nothing, BEST[name], reference)
    return ours, theirs


def of_images(name: str, policy: Measured, reference: Measured) -> tuple[Doubles, Doubles]:
    """Return a metric of each image under both networks, as they are compared."""
    return credited(
        name,
        policy.values[name],
        reference.values[name],
        nothing=np.all(policy.nothing, axis=1),
        reference_nothing=np.all(reference.nothing, axis=1),
    )


def of_class(name: str, number: int, policy: Measured, reference: Measured) -> tuple[Doubles, Doubles]:
    """Return a metric of one class in each image under both networks, as they are compared."""
    return credited(
        name,
        policy.of_classes[name][:, number],
        reference.of_classes[name][:, number],
        nothing=policy.nothing[:, number],
        reference_nothing=reference.nothing[:, number],
    )


def goodness(name: str, values: Doubles) -> Doubles:
    """Return values of a directed metric so that more is better.

    >>> goodness("hd95", np.array([2.0, 1.0]))
    array([-2., -1.])
    """
    return values if HIGHER_IS_BETTER[name] else -values
