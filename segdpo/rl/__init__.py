"""Reinforcement learning on masks: rewards, rollouts, PPO, GRPO, REINFORCE."""

from typing import TYPE_CHECKING

from segdpo.lazy import attach

if TYPE_CHECKING:
    from segdpo.rl.algorithm import Algorithm as Algorithm
    from segdpo.rl.algorithm import Divergence as Divergence
    from segdpo.rl.rewards import Part as Part
    from segdpo.rl.rewards import Reward as Reward
    from segdpo.rl.rewards import by_judge as by_judge
    from segdpo.rl.rewards import by_model as by_model
    from segdpo.rl.rewards import dice as dice
    from segdpo.rl.rewards import iou as iou
    from segdpo.rl.rewards import weighted_sum as weighted_sum
    from segdpo.rl.task import PolicyGradientTask as PolicyGradientTask

__getattr__, __dir__ = attach(__name__)
