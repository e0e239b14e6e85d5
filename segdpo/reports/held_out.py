"""Sentences on what a run could not know, what its held-out judgements show, and which network it kept."""

import math
from collections.abc import Mapping
from typing import Any

from segdpo.metrics import Interval
from segdpo.reports.run_files import at, interval_at, number
from segdpo.reports.text import count_of, decimal

# Gains over the reference in held-out judgements, under the names of summary.json.
GAINS = {"chosen_iou": "IoU with the chosen", "iou_margin": "IoU, chosen − rejected"}


def gold_sentence(summary: Mapping[str, Any]) -> str:
    """Return how many test images have gold, nothing if all do; without any, IoU is not known."""
    images, golden = (number(at(summary, "gold", key)) for key in ("images", "with_gold"))
    if math.isnan(images) or golden == images:
        return ""
    if golden == 0:
        return f"IoU with gold is not known: none of {count_of(int(images), 'test image')} has gold"
    return f"{golden:.0f} of {count_of(int(images), 'test image')} have gold"


def kept_sentence(summary: Mapping[str, Any]) -> str:
    """Return which network the safety rule kept as policy.safetensors, and why; nothing for keep=always."""
    if at(summary, "kept", "rule") != "safe":
        return ""
    gains = {name: (interval_at(summary, "held_out", key).mean, bound_of(summary, key)) for key, name in GAINS.items()}
    judged = count_of(int(number(at(summary, "held_out", "judgements"))), "held-out judgement")
    shown = "; ".join(
        f"{name} {decimal(mean, sign=True)}, at least {decimal(bound, sign=True)}"
        for name, (mean, bound) in gains.items()
    )
    if at(summary, "kept", "network") == "policy":
        return f"The policy is kept: {judged} show that it is better than the reference ({shown}; 95 % confidence)"
    kept = "The reference is kept as policy.safetensors (keep=always keeps the policy, now trained_policy.safetensors)"
    if any(math.isnan(bound) for _, bound in gains.values()):
        return f"{kept}: {judged} are too few to show that the policy is better"
    return f"{kept}: {judged} do not show that the policy is better ({shown}; 95 % confidence)"


def bound_of(summary: Mapping[str, Any], gain: str) -> float:
    """Return the lower end of the one-sided interval of a gain; NaN where it is not known."""
    return number(at(summary, "held_out", gain, "bound"))


def wins_of(summary: Mapping[str, Any]) -> Interval:
    """Return the share of judged images (or groups) in which the policy has both gains, a tie being half a win."""
    rate, low, high, n = (number(at(summary, "held_out", "win_rate", key)) for key in ("rate", "low", "high", "n"))
    return Interval(rate, low, high, int(n) if math.isfinite(n) else 0)
