"""What makes PPO, GRPO and REINFORCE different: one value each, in conf/algorithm/."""

from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor, nn

from segdpo.checks import check_choice, check_range
from segdpo.losses import RATIOS, Surrogate

ESTIMATORS = ("exact", "k1", "k3")


@dataclass(frozen=True)
class Divergence:
    """What KL(policy ‖ reference) costs: the price of a nat, in the units of the advantages that the surrogate gets.

    The surrogate is a mean over pixels and so is the divergence: the same price means the same at any image size, and
    the same in the reward as in the loss.

    Args:
        reward: price in the reward, of the masks as they were drawn. Each pixel pays for itself: pixels being
            independent, the others' share would be noise.
        loss: price in the loss, whose gradient is taken.
        estimator: of the loss: `exact`, a sum over classes; `k1` or `k3` of the masks drawn, weighed by the ratio,
            without which their gradients would be those of other things.
        target: nats an image that prices are adapted to keep; None: prices stay. Ziegler et al., 2019.
        rate: how fast: by a factor of 1 ± rate / 5 a rollout at most.
    """

    reward: float = 0.0
    loss: float = 0.0
    estimator: str = "exact"
    target: float | None = None
    rate: float = 0.1

    def __post_init__(self) -> None:
        check_range("divergence.reward", self.reward, least=0)
        check_range("divergence.loss", self.loss, least=0)
        check_choice("divergence.estimator", self.estimator, ESTIMATORS)
        check_range("divergence.rate", self.rate, above=0, below=5)
        if self.target is not None:
            check_range("divergence.target", self.target, above=0)
            if not self.asks_reference:
                raise ValueError(
                    "Expected a price to adapt to divergence.target but divergence.reward and divergence.loss are 0; "
                    "set one of them."
                )

    @property
    def asks_reference(self) -> bool:
        """Whether there is any price, and so any need of a reference."""
        return self.reward > 0 or self.loss > 0


@dataclass(frozen=True)
class Algorithm:
    """One way to climb a reward.

    Args:
        name: in tables.
        surrogate: `(log_prob, old_log_prob, advantage) -> loss`, elementwise.
        masks: drawn an image.
        baseline: makes advantages [images, masks] of rewards: `group_advantages`, `leave_one_out`; or None, and
        value: makes the value head whose value is taken from the rewards.
        normalise: bring the advantages of a rollout to mean 0 and deviation 1.
        ratio: of each `pixel`, of the `mask`, or the `mask_mean`: see `per_ratio`.
        epochs: passes over a rollout.
        minibatches: steps a pass; each has its share of the images with all their masks.
        entropy: weight of the mean entropy of a pixel, which is to stay.
        divergence: from the reference.
        target_kl: nats a pixel by which the policy may leave the one that drew; beyond, the rollout's epochs end.
        gradient_clip: norm of the gradient, policy and value head each for themselves; None: as it is.
        value_lr: learning rate of the value head.
        temperature: of the policy that draws and is trained: softmax(z/T).
        smoothness: of the noise in pixels; above 0, drawn masks are off-policy: see segdpo/policies/sampling.py.
        collapse: rollouts in a row with one class alone in every predicted mask that stop the run; None: never.
    """

    name: str
    surrogate: Surrogate
    masks: int = 4
    baseline: Callable[[Tensor], Tensor] | None = None
    value: Callable[..., nn.Module] | None = None
    normalise: bool = False
    ratio: str = "pixel"
    epochs: int = 1
    minibatches: int = 1
    entropy: float = 0.0
    divergence: Divergence = field(default_factory=Divergence)
    target_kl: float | None = None
    gradient_clip: float | None = 0.5
    value_lr: float = 1e-3
    temperature: float = 1.0
    smoothness: float = 0.0
    collapse: int | None = 5

    def __post_init__(self) -> None:
        if (self.baseline is None) == (self.value is None):
            raise ValueError(
                "Expected either a baseline (GRPO, REINFORCE) or a value head (PPO) but got "
                f"{'neither' if self.value is None else 'both'}; set algorithm.baseline or algorithm.value to null."
            )
        check_choice("algorithm.ratio", self.ratio, RATIOS)
        for name in ("masks", "epochs", "minibatches"):
            check_range(f"algorithm.{name}", getattr(self, name), least=1)
        check_range("algorithm.entropy", self.entropy, least=0)
        for name in ("temperature", "value_lr"):
            check_range(f"algorithm.{name}", getattr(self, name), above=0)
        check_range("algorithm.smoothness", self.smoothness, least=0)
        for name in ("target_kl", "gradient_clip", "collapse"):
            if getattr(self, name) is not None:
                check_range(f"algorithm.{name}", getattr(self, name), above=0)
        if self.baseline is not None and self.masks < 2:
            raise ValueError(
                f"Expected algorithm.masks of at least 2 for {self.name}, which holds each mask against the others of "
                f"its image, but got {self.masks}; set algorithm.masks=4, or choose algorithm=ppo."
            )
        if self.divergence.reward > 0 and self.temperature != 1:
            raise ValueError(
                f"Expected algorithm.temperature=1 for a divergence in the reward but got {self.temperature}: masks "
                "drawn at another temperature do not say how far the policy is; set algorithm.divergence.loss instead."
            )
