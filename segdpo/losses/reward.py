"""Losses of reward models, which give a number to each mask of an image, higher for the preferred mask.

In the formulas R⁺ and R⁻ are the rewards of the chosen and the rejected mask. `RewardLoss` adds an objective and the
centring term, and takes the weighted mean.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from segdpo.checks import check_range, check_same_shape
from segdpo.losses.listwise import ranking_nll
from segdpo.losses.preference import LossTerms, weighted_mean

Objective = Callable[..., Tensor]


def bradley_terry(
    chosen: Float[Tensor, "pairs"], rejected: Float[Tensor, "pairs"], *, margin: float | Tensor = 0.0
) -> Float[Tensor, "pairs"]:
    """Bradley–Terry: −log σ(R⁺ − R⁻ − m).

    Bradley and Terry, 1952; m: Touvron et al., "Llama 2", 2023.

    Args:
        chosen: R⁺.
        rejected: R⁻.
        margin: m, one for all pairs or [pairs].

    >>> bradley_terry(torch.tensor([2.0]), torch.tensor([1.0]), margin=1.0)
    tensor([0.6931])
    """
    check_same_shape("chosen", chosen, "rejected", rejected)
    if isinstance(margin, Tensor):
        check_same_shape("margin", margin, "chosen", chosen)
    return -F.logsigmoid(chosen - rejected - margin)


def centring(chosen: Float[Tensor, "pairs"], rejected: Float[Tensor, "pairs"]) -> Float[Tensor, "pairs"]:
    """Centring: (R⁺ + R⁻)², which keeps rewards near 0; losses of differences leave their mean open.

    Eisenstein et al., "Helping or Herding?", 2023.

    Args:
        chosen: R⁺.
        rejected: R⁻.
    """
    check_same_shape("chosen", chosen, "rejected", rejected)
    return (chosen + rejected) ** 2


def plackett_luce(
    rewards: Float[Tensor, "images masks"], kept: Bool[Tensor, "images masks"] | None = None
) -> Float[Tensor, "images"]:
    """Plackett–Luce: −Σ_k log(e^{R_k} / Σ_{j≥k} e^{R_j}) over a ranking of K masks; for K = 2, `bradley_terry`.

    Plackett, 1975; Luce, 1959.

    Args:
        rewards: best first.
        kept: False = the mask does not take part in the ranking; None: all do.

    >>> plackett_luce(torch.zeros(1, 3)).exp()  # 3! orders, all equally likely
    tensor([6.])
    """
    if rewards.ndim != 2:
        raise ValueError(
            f"Expected rewards [images, masks], best first, but got shape {tuple(rewards.shape)}; "
            "give one row of rewards an image."
        )
    if kept is not None:
        check_same_shape("kept", kept, "rewards", rewards)
    return ranking_nll(rewards, kept)


@dataclass(frozen=True)
class RewardLoss:
    """total = weighted mean over lists of objective + c · centring; a pair is a list of two, the chosen mask first.

    Args:
        objective: of pairs, called with (chosen, rejected) and `margin=`, or of rankings, called with (rewards).
        centring: c; for a ranking, centring is the square of twice the mean reward, which for a pair is (R⁺ + R⁻)².
        margin_per_gap: the margin of a pair is this times the gap that the judge sees between its masks.

    >>> terms = RewardLoss(bradley_terry, centring=0.5)(torch.tensor([[1.0, 1.0]]))
    >>> terms.total
    tensor(2.6931)
    """

    objective: Objective
    centring: float = 0.0
    margin_per_gap: float = 0.0

    def __post_init__(self) -> None:
        """Check the arguments."""
        check_range("centring", self.centring, least=0)
        check_range("margin_per_gap", self.margin_per_gap, least=0)
        if not callable(self.objective):
            raise TypeError(f"Expected the objective to be a function but got {self.objective!r}.")
        if self.margin_per_gap and not self.is_of_pairs:
            raise ValueError(
                f"Expected margin_per_gap=0 for an objective of rankings but got {self.margin_per_gap:g}; "
                "leave it 0, or choose reward_loss=bradley_terry."
            )

    @property
    def is_of_pairs(self) -> bool:
        """Whether the objective takes the rewards of a chosen and a rejected mask rather than of a ranking."""
        return "chosen" in inspect.signature(self.objective).parameters

    def __call__(self, rewards: Tensor, *, weight: Tensor | None = None, gap: Tensor | None = None) -> LossTerms:
        """Compute the loss.

        Args:
            rewards: [lists, masks], best first.
            weight: [lists]; 2 counts the list twice, 0 leaves it out. None: 1 for every list.
            gap: [lists], the judge's gap between the masks of a pair; only for `margin_per_gap`.
        """
        if rewards.ndim != 2 or rewards.shape[1] < 2:
            raise ValueError(
                f"Expected rewards [lists, masks] of at least 2 masks but got shape {tuple(rewards.shape)}."
            )
        check_rewards(rewards)
        parts = {"objective": self._objective(rewards, gap)}
        total = parts["objective"]
        if self.centring:
            parts["centring"] = (2 * rewards.mean(1)) ** 2
            total = total + self.centring * parts["centring"]
        mean, whole = weighted_mean(total, weight, what="the lists")
        return LossTerms(mean, parts, whole)

    def _objective(self, rewards: Tensor, gap: Tensor | None) -> Tensor:
        if not self.is_of_pairs:
            return self.objective(rewards)
        if rewards.shape[1] != 2:
            raise ValueError(
                f"Expected pairs for this objective but got rankings of {rewards.shape[1]} masks; "
                "choose reward_loss=plackett_luce, or datamodule=preference."
            )
        if self.margin_per_gap == 0:
            return self.objective(rewards[:, 0], rewards[:, 1])
        if gap is None:
            raise ValueError(
                f"Expected the judge's gap of each pair for margin_per_gap={self.margin_per_gap:g} but got none; "
                "set reward_loss.margin_per_gap=0."
            )
        return self.objective(rewards[:, 0], rewards[:, 1], margin=self.margin_per_gap * gap.to(rewards))


def check_rewards(rewards: Tensor) -> None:
    """Raise an error for rewards that are not finite. Not read on a GPU, since that would wait for it."""
    if rewards.device.type != "cpu" or torch.compiler.is_compiling() or bool(torch.isfinite(rewards.detach()).all()):
        return
    wrong = (~torch.isfinite(rewards.detach())).nonzero()
    raise ValueError(
        f"Expected finite rewards but {len(wrong)} of {rewards.numel()} are NaN or infinite, the first that of mask "
        f"{int(wrong[0, -1])} in list {int(wrong[0, 0])}; lower the learning rate, or inspect that image and its masks."
    )
