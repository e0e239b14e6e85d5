"""Numbers and verdicts in words for the report."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from segdpo.reports.html.files import at, number

METRICS = {
    "iou": "IoU",
    "dice": "Dice",
    "boundary_iou": "Boundary IoU",
    "hd95": "HD95, less is better",
    "surface_dice": "Surface Dice",
    "precision": "Precision",
    "recall": "Recall",
    "components": "Surplus components, 0 is best",
}
LESS_IS_BETTER, NEITHER = ("hd95", "ece", "brier"), ("components",)
DASH = "–"
# Below this the bootstrap's own error is as large as what it tells.
FEW = 20


@dataclass(frozen=True)
class Verdict:
    """What a difference says: `tone` is better, worse, open or unknown; `lead` a few words, `rest` the sentence."""

    tone: str
    lead: str
    rest: str


def plain(value: object, digits: int = 3) -> str:
    """Return a number with a real minus, a dash where there is none.

    >>> plain(-0.12345), plain(float("nan")), plain(-39011305472.0)
    ('−0.123', '–', '−3.9e+10')
    """
    found = number(value)
    if math.isnan(found):
        return DASH
    if math.isinf(found):
        return "∞" if found > 0 else "−∞"
    large = abs(found) >= 1e5
    return (f"{found:.2g}" if large else f"{found:.{digits}f}").replace("-", "−", 1)


def signed(value: object, digits: int = 3) -> str:
    """Return a number with its sign.

    >>> signed(0.1), signed(-0.1)
    ('+0.100', '−0.100')
    """
    said = plain(value, digits)
    return f"+{said}" if number(value) >= 0 else said


def bounds(interval: object, *, sign: bool = False, digits: int = 3) -> str:
    """Return "[low, high]", nothing where there is no interval."""
    low, high = number(at(interval, "low")), number(at(interval, "high"))
    if math.isnan(low) or math.isnan(high):
        return ""
    show = signed if sign else plain
    return f"[{show(low, digits)}, {show(high, digits)}]"


def tone_of(interval: object, metric: str = "iou") -> str:
    """Say whether a difference is surely better or worse, open (its interval has 0 in it) or unknown."""
    low, high = number(at(interval, "low")), number(at(interval, "high"))
    if math.isnan(low) or math.isnan(high):
        return "unknown"
    if metric in NEITHER or low <= 0 <= high:
        return "open"
    return "better" if (low > 0) != (metric in LESS_IS_BETTER) else "worse"


def images(count: object, what: str = "test image") -> str:
    """Return "1 test image", "60 test images"."""
    found = number(count)
    if math.isnan(found):
        return f"an unknown number of {what}s"
    return f"{found:.0f} {what}{'' if found == 1 else 's'}"


def verdict(numbers: Mapping[str, Any]) -> Verdict:
    """Return whether the policy is better than the reference, in IoU over the test images, and on how many."""
    difference = at(numbers, "difference", "iou")
    mean, n = number(at(difference, "mean")), at(difference, "n")
    policy, reference = at(numbers, "policy", "iou"), at(numbers, "reference", "iou")
    if math.isnan(mean):
        return _without_difference(policy, reference)
    sides = f"{plain(at(policy, 'mean'))} against the reference’s {plain(at(reference, 'mean'))}"
    counts = f"better on {plain(at(difference, 'better'), 0)}, worse on {plain(at(difference, 'worse'), 0)}"
    tone = tone_of(difference)
    if tone == "unknown":
        return Verdict(
            "unknown",
            f"{signed(mean)} IoU on {images(n)}",
            f"without an interval: so few images say nothing of others. {sides}; {counts}.",
        )
    lead = {
        "better": f"Better by {plain(mean)} IoU",
        "worse": f"Worse by {plain(-mean)} IoU",
        "open": f"No clear difference: {signed(mean)} IoU",
    }[tone]
    few = " So few images make the interval itself a rough one." if number(n) < FEW else ""
    return Verdict(tone, lead, f"{bounds(difference, sign=True)} over {images(n)}: {sides}; {counts}.{few}")


def _without_difference(policy: object, reference: object) -> Verdict:
    if math.isnan(number(at(policy, "mean"))):
        return Verdict("unknown", "No result", "the policy’s IoU with gold is not known; see what is missing.")
    said = f"{bounds(policy)} over {images(at(policy, 'n'))}".lstrip()
    why = "the reference’s is not known" if reference is None else "the difference is not known"
    return Verdict("unknown", f"IoU {plain(at(policy, 'mean'))}", f"{said}; {why}, so whether it is better is open.")


def displacement(chosen_gain: object) -> str:
    """Say what the chosen gain on the test pairs tells, nothing where it is not known."""
    gain = number(chosen_gain)
    if math.isnan(gain):
        return ""
    if gain < 0:
        return (
            f"Displaced: on the test pairs the policy likes the chosen masks less than the reference did "
            f"(chosen gain {signed(gain)})."
        )
    return f"No displacement: on the test pairs the chosen masks gained {signed(gain)}."
