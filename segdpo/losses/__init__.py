"""Losses: objectives of pairs and rankings, anchors, `PreferenceLoss`, reward models, policy gradients."""

from typing import TYPE_CHECKING

from segdpo.lazy import attach

if TYPE_CHECKING:
    from segdpo.losses.objectives import dpo as dpo
    from segdpo.losses.policy_gradient import RATIOS as RATIOS
    from segdpo.losses.policy_gradient import Surrogate as Surrogate
    from segdpo.losses.policy_gradient import adaptive_coefficient as adaptive_coefficient
    from segdpo.losses.policy_gradient import clipped_surrogate as clipped_surrogate
    from segdpo.losses.policy_gradient import cut_off as cut_off
    from segdpo.losses.policy_gradient import group_advantages as group_advantages
    from segdpo.losses.policy_gradient import kl_k1 as kl_k1
    from segdpo.losses.policy_gradient import kl_k3 as kl_k3
    from segdpo.losses.policy_gradient import leave_one_out as leave_one_out
    from segdpo.losses.policy_gradient import normalised as normalised
    from segdpo.losses.policy_gradient import per_ratio as per_ratio
    from segdpo.losses.policy_gradient import reinforce as reinforce
    from segdpo.losses.preference import Anchor as Anchor
    from segdpo.losses.preference import LossTerms as LossTerms
    from segdpo.losses.preference import PreferenceLoss as PreferenceLoss
    from segdpo.losses.preference import Term as Term
    from segdpo.losses.reward import RewardLoss as RewardLoss
    from segdpo.losses.reward import bradley_terry as bradley_terry
    from segdpo.losses.reward import plackett_luce as plackett_luce

__getattr__, __dir__ = attach(__name__)
