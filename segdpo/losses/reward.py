"""Losses of reward models: numbers given to masks of one image, higher for the mask that is preferred.

Each is a plain function of rewards; R⁺ and R⁻ below are those of the chosen and the rejected mask. `RewardLoss` joins
an objective and the centring term, weighs the pairs and takes the mean.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from segdpo.checks import check_range, check_same_shape
from segdpo.losses.preference import LossTerms

Objective = Callable[..., Tensor]


def bradley_terry(
    chosen: Float[Tensor, "pairs"], rejected: Float[Tensor, "pairs"], *, margin: float | Tensor = 0.0
) -> Float[Tensor, "pairs"]:
    """−log σ(R⁺ − R⁻ − m): the chosen mask shall be ahead by the margin m, one for all pairs or one a pair.

    Bradley and Terry, 1952; m: Touvron et al., "Llama 2", 2023.

    >>> bradley_terry(torch.tensor([2.0]), torch.tensor([1.0]), margin=1.0)
    tensor([0.6931])
    """
    check_same_shape("chosen", chosen, "rejected", rejected)
    if isinstance(margin, Tensor):
        check_same_shape("margin", margin, "chosen", chosen)
    return -F.logsigmoid(chosen - rejected - margin)


def centring(chosen: Float[Tensor, "pairs"], rejected: Float[Tensor, "pairs"]) -> Float[Tensor, "pairs"]:
    """(R⁺ + R⁻)²: rewards stay about 0, which no loss of differences asks for.

    Eisenstein et al., "Helping or Herding?", 2023.
    """
    check_same_shape("chosen", chosen, "rejected", rejected)
    return (chosen + rejected) ** 2


def plackett_luce(
    rewards: Float[Tensor, "images masks"], kept: Bool[Tensor, "images masks"] | None = None
) -> Float[Tensor, "images"]:
    """−Σ_k log(e^{R_k} / Σ_{j≥k} e^{R_j}) over a ranking of K masks, best first; for K = 2, `bradley_terry`.

    Masks that are not `kept` are as if they were not in the ranking. Plackett, 1975; Luce, 1959.

    >>> plackett_luce(torch.zeros(1, 3)).exp()  # 3! orders, all alike
    tensor([6.])
    """
    if rewards.ndim != 2:
        raise ValueError(
            f"Expected rewards [images, masks], best first, but got shape {tuple(rewards.shape)}; "
            "give one row of rewards an image."
        )
    kept = torch.ones_like(rewards, dtype=torch.bool) if kept is None else kept
    check_same_shape("kept", kept, "rewards", rewards)
    rewards = rewards.masked_fill(~kept, 0)
    # [j, k]: log Σ_{j≥k} e^{R_j − R_k}. Differences first, or large rewards lose the small ones between them.
    ahead = rewards[:, :, None] - rewards[:, None, :]
    same = torch.eye(rewards.shape[1], dtype=torch.bool, device=rewards.device)
    earlier = torch.ones_like(same).triu(diagonal=1)
    ahead = ahead.masked_fill((earlier | ~kept[:, :, None]) & ~same, float("-inf"))
    return ahead.logsumexp(1).masked_fill(~kept, 0).sum(1)


@dataclass(frozen=True)
class RewardLoss:
    """total = mean over lists (weighed) of objective + c · centring; a pair is a list of two, the chosen mask first.

    Args:
        objective: of pairs, called with (chosen, rejected) and `margin=`, or of rankings, called with (rewards).
        centring: c; of a ranking, the square of twice the mean reward, which for a pair is (R⁺ + R⁻)².
        margin_per_gap: the margin of a pair is this times the gap between its masks in the eyes of the judge.

    >>> terms = RewardLoss(bradley_terry, centring=0.5)(torch.tensor([[1.0, 1.0]]))
    >>> terms.total
    tensor(2.6931)
    """

    objective: Objective
    centring: float = 0.0
    margin_per_gap: float = 0.0

    def __post_init__(self) -> None:
        """Find what is wrong before the first step."""
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
        """Whether the objective takes a chosen and a rejected mask, not a ranking."""
        return "chosen" in inspect.signature(self.objective).parameters

    def __call__(self, rewards: Tensor, *, weight: Tensor | None = None, gap: Tensor | None = None) -> LossTerms:
        """Return total and parts of rewards [lists, masks], best first; `gap` [lists]: what the judge saw between two.

        `weight` [lists]: 2 is the list twice, 0 the list left out.
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
        if weight is None:
            return LossTerms(total.mean(), parts)
        check_same_shape("weight", weight, "the lists", total)
        weight = weight.to(total.dtype)
        return LossTerms((weight * total).sum() / weight.sum().clamp(min=torch.finfo(weight.dtype).tiny), parts)

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
    """Refuse rewards that are no numbers; on a GPU, where looking would wait, they show in the loss a step later."""
    if rewards.device.type != "cpu" or torch.compiler.is_compiling() or bool(torch.isfinite(rewards.detach()).all()):
        return
    wrong = (~torch.isfinite(rewards.detach())).nonzero()
    raise ValueError(
        f"Expected finite rewards but {len(wrong)} of {rewards.numel()} are NaN or infinite, the first that of mask "
        f"{int(wrong[0, -1])} in list {int(wrong[0, 0])}; lower the learning rate, or look at that image and its masks."
    )
