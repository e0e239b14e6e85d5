"""What preference training logs beside the loss: the scores of both networks, and how far they are apart."""

from collections.abc import Mapping

from torch import Tensor

from segdpo.losses.preference_loss import PreferenceLoss
from segdpo.scores import PairScores, Score

SIDES = ("chosen", "rejected", "margin")
PAIRS = ("margin", "accuracy", "chosen_gain", "rejected_gain", "kl")


def names_of(loss: PreferenceLoss) -> list[str]:
    """Return the names of all that may be logged, without the stage."""
    parts = [f"loss/{name}" for name in ("objective", *loss.anchors)]
    scores = [f"score/{network}_{side}" for network in ("policy", "reference") for side in SIDES]
    return ["loss", *parts, *scores, *(f"pairs/{name}" for name in PAIRS), "beta"]


def watched_values(
    policy: Mapping[Score, PairScores], reference: Mapping[Score, PairScores] | None, score: Score
) -> dict[str, Tensor]:
    """Return the scores of both masks under both networks, and what each mask gained: s⁺_θ − s⁺_ref, s⁻_θ − s⁻_ref."""
    values = _sides("policy", policy[score])
    # A reference of somebody's own may not know the watched score.
    if reference is None or score not in reference:
        return values
    values |= _sides("reference", reference[score])
    gains = {side: values[f"score/policy_{side}"] - values[f"score/reference_{side}"] for side in SIDES[:2]}
    return values | {f"pairs/{side}_gain": gain for side, gain in gains.items()}


def _sides(network: str, pairs: PairScores) -> dict[str, Tensor]:
    return {f"score/{network}_{side}": getattr(pairs, side).detach() for side in SIDES}
