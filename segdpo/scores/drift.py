"""How far the policy has moved where nobody disagreed."""

from torch import Tensor

from segdpo.checks import check_same_shape
from segdpo.kernels.drift import agreement_drift
from segdpo.measures import prepare


def score_drift(
    policy_logits: Tensor,
    reference_logits: Tensor,
    chosen: Tensor,
    rejected: Tensor,
    *,
    valid: Tensor | None = None,
    image_index: Tensor | None = None,
    check: bool | None = None,
) -> Tensor:
    """Return the mean KL(π_ref ‖ π_θ) over the valid pixels where the two masks agree, one number a pair.

    What nobody judged should stay as it was: `hold_anchor` keeps this small. 0 where the masks agree nowhere.
    """
    check_same_shape("policy_logits", policy_logits, "reference_logits", reference_logits)
    labels, measure = prepare(
        policy_logits,
        {"chosen": chosen, "rejected": rejected},
        valid=valid,
        image_index=image_index,
        check=check,
    )
    agree = measure.inside & (labels[0] == labels[1])
    return agreement_drift(policy_logits.flatten(2), reference_logits.flatten(2), agree, measure.image_index)
