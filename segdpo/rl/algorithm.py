"""The options that make PPO, GRPO and REINFORCE different; conf/algorithm/ has one file for each."""

from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor, nn

from segdpo.checks import check_choice, check_range
from segdpo.losses import RATIOS, Surrogate

ESTIMATORS = ("exact", "k1", "k3")


@dataclass(frozen=True)
class Divergence:
    """The penalty on KL(policy ‖ reference), with one coefficient in the reward and one in the loss.

    The surrogate is a mean over pixels and so is the divergence: a coefficient means the same at any image size, and
    the same in the reward as in the loss.

    Args:
        reward: coefficient in the reward of the masks as they were drawn. Each pixel is charged its own log-ratio:
            pixels are independent, so the others' would only add noise.
        loss: coefficient in the loss, through which the gradient flows.
        estimator: of the divergence in the loss: `exact`, a sum over classes; `k1` or `k3`, estimated from the masks
            drawn and weighted by the ratio, without which their gradients would be wrong.
        target: nats an image that the coefficients are adapted to keep; None: they stay constant. Ziegler et al., 2019.
        rate: of the adaptation: a factor of at most 1 ± rate / 5 a rollout.
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
            if not self.needs_reference:
                raise ValueError(
                    "Expected a coefficient to adapt to divergence.target but divergence.reward and divergence.loss "
                    "are 0; set one of them."
                )

    @property
    def needs_reference(self) -> bool:
        """Whether a coefficient is above 0."""
        return self.reward > 0 or self.loss > 0


@dataclass(frozen=True)
class Algorithm:
    """A policy-gradient algorithm.

    Args:
        name: for tables.
        surrogate: `(log_prob, old_log_prob, advantage) -> loss`, elementwise.
        masks: drawn an image.
        baseline: makes advantages [images, masks] of rewards: `group_advantages`, `leave_one_out`; or None, and
        value: makes the value head whose value is subtracted from the rewards.
        normalise: bring the advantages of a rollout to mean 0 and standard deviation 1.
        ratio: of each `pixel`, of the `mask`, or the `mask_mean`: see `per_ratio`.
        epochs: passes over a rollout.
        minibatches: steps a pass; each has its share of the images with all their masks.
        entropy: coefficient of the mean entropy of a pixel, which the loss rewards.
        divergence: penalty on leaving the reference.
        target_kl: the epochs of a rollout end when KL(old policy ‖ policy) exceeds this many nats a pixel.
        gradient_clip: largest norm of the gradient, for the policy and the value head separately; None: not clipped.
        value_lr: learning rate of the value head.
        temperature: of the policy that draws and is trained: softmax(z/T).
        smoothness: standard deviation, in pixels, of the Gaussian that smooths the noise of drawn masks; above 0,
            drawn masks are off-policy: see docs/methods/policy_gradient.md.
        collapse: number of consecutive rollouts whose predicted masks all have a single class that stops the run;
            None: never.
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
                f"Expected algorithm.masks of at least 2 for {self.name}, which compares the masks of an image, but "
                f"got {self.masks}; set algorithm.masks=4, or choose algorithm=ppo."
            )
        if self.divergence.reward > 0 and self.temperature != 1:
            raise ValueError(
                f"Expected algorithm.temperature=1 for a divergence in the reward but got {self.temperature}: masks "
                "drawn at another temperature do not estimate the divergence; set algorithm.divergence.loss instead."
            )
