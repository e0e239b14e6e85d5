"""What preference training logs beside the loss: the scores of both networks, and how far they are apart."""

from collections.abc import Mapping

from torch import Tensor

from segdpo.losses.preference_loss import PreferenceLoss
from segdpo.scores import PairScores, Score

SIDES = ("chosen", "rejected", "margin")


def names_of(loss: PreferenceLoss) -> list[str]:
    """Return the names of all that may be logged, without the stage."""
    parts = [f"loss/{name}" for name in ("objective", *loss.anchors)]
    scores = [f"score/{network}_{side}" for network in ("policy", "reference") for side in SIDES]
    return ["loss", *parts, *scores, "pairs/margin", "pairs/accuracy", "pairs/chosen_gain", "beta"]


def watched_values(
    policy: Mapping[Score, PairScores], reference: Mapping[Score, PairScores] | None, score: Score
) -> dict[str, Tensor]:
    """Return the scores of both masks under both networks, and s⁺_θ − s⁺_ref."""
    values = _sides("policy", policy[score])
    # A reference of somebody's own may not know the watched score.
    if reference is None or score not in reference:
        return values
    gain = policy[score].chosen.detach() - reference[score].chosen
    return values | _sides("reference", reference[score]) | {"pairs/chosen_gain": gain}


def _sides(network: str, pairs: PairScores) -> dict[str, Tensor]:
    return {f"score/{network}_{side}": getattr(pairs, side).detach() for side in SIDES}
